"""`headwise methods`: what to take for which need, and every method with the facts of its card."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Annotated, Any

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.report.terminal import stdout

# need, what to take, and why
NEEDS = (
    (
        "little memory for the cache",
        "headwise tune MODEL --memory 512MiB   (at once, without tuning: headwise run MODEL --recipe int8)",
        "measures what each head of your model can do without; int8 takes half the bytes and forgets nothing",
    ),
    (
        "long prompts take too long to read",
        "headwise run MODEL --recipe 'vertical_slash(120, slashes=300)'",
        "computes the pairs that the last queries attend to; pays from some thousand tokens on, see `headwise speed`",
    ),
    (
        "each new token takes too long after a long prompt",
        "headwise run MODEL --recipe 'quest(2048)'",
        "reads 2048 tokens that may matter to this token, and forgets none; it frees no memory",
    ),
    (
        "nothing may be forgotten",
        "headwise run MODEL --recipe int8",
        "every token stays, in half the bytes of bfloat16; a select part reads less of them",
    ),
    (
        "unsure",
        "headwise tune MODEL, then headwise check tuned.plan MODEL",
        "tries plans and single methods on your model, and says how far from dense attention the chosen one is",
    ),
)


def facts_of(name: str, cls: type) -> dict[str, Any]:
    """A method as plain JSON data: name, part, the card's fields, its calibration tensors, and its knobs with their
    defaults."""
    from headwise.registry import calibration_of

    knobs = {field.name: field.default for field in fields(cls) if field.init}
    tensors = {tensor: asdict(one) for tensor, one in calibration_of(cls).items()}
    return {"name": name, "part": cls.part, **asdict(cls.card), "calibration": tensors, "knobs": knobs}  # type: ignore[attr-defined]


def all_facts() -> list[dict[str, Any]]:
    """Every method, in the order of the parts."""
    from headwise.registry import all_methods

    return [facts_of(name, cls) for name, cls in all_methods().items()]


def signature(facts: dict[str, Any]) -> str:
    """`snapkv(budget=1.0, sinks=4, ...)`."""
    return f"{facts['name']}({', '.join(f'{knob}={value!r}' for knob, value in facts['knobs'].items())})"


def card_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The card of a method as (what, text)."""
    from headwise.systems import systems

    said = {True: "yes", False: "no"}
    return [
        ("knobs", signature(facts)),
        ("part", facts["part"]),
        ("paper", facts["paper"]),
        ("stands for systems", ", ".join(f"{one} ({systems()[one].name})" for one in facts["systems"]) or "none"),
        ("phase", facts["phase"]),
        ("lossy", said[facts["lossy"]]),
        ("frees memory", said[facts["frees_memory"]]),
        ("looks at queries", said[facts["query_aware"]]),
        ("needs calibration", "; ".join(_tensor(*one) for one in facts["calibration"].items()) or "no"),
        ("prompt in chunks", facts["chunking"].replace("_", " ")),
        ("forgets", facts["forgets"]),
        ("differs from the paper", facts["deviations"]),
    ]


def _tensor(name: str, facts: dict[str, str]) -> str:
    """A calibration tensor: its name and sizes, what it says, and the measure that finds it."""
    sizes = ", ".join(["layers", "KV heads", *facts["sizes"].split()])
    return f"`{name}` [{sizes}], {facts['about']} (`headwise calibrate --only {facts['measure']}`)"


def card(name: str) -> list[str]:
    """A method's card and its knobs, as lines."""
    from headwise.registry import all_methods

    cls = all_methods()[name]
    facts = facts_of(name, cls)
    return [
        f"{name}: {facts['title']}",
        *(f"{label:22} {text}" for label, text in card_lines(facts)),
        *(line.strip() for line in (cls.__doc__ or "").strip().splitlines()),
    ]


@command("methods")
def methods(
    name: Annotated[str, typer.Argument(help="A method, or a part: prefill, evict, budget, compress, select.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Recommend methods by need, and list every method: what it is, when it acts, what it forgets; or show one."""
    from headwise.errors import HeadwiseError, did_you_mean

    listed = all_facts()
    known = [facts["name"] for facts in listed]
    parts = list(dict.fromkeys(facts["part"] for facts in listed))
    if name and name not in (*known, *parts):
        raise HeadwiseError(f"nothing is called '{name}'; {did_you_mean(name, (*known, *parts))}")
    chosen = [facts for facts in listed if not name or name in (facts["name"], facts["part"])]
    if as_json:
        typer.echo(json.dumps(chosen, indent=1))
    elif name in known:
        typer.echo("\n".join(card(name)))
    else:
        if not name:
            typer.echo("\n".join(recommendation()))
        stdout().print(_table(chosen))


def recommendation() -> list[str]:
    """What to take for which need, as lines."""
    lines = ["What do you need?", ""]
    for need, take, because in NEEDS:
        lines += [f"  {need}", f"    {take}", f"    {because}"]
    return [*lines, ""]


def _table(listed: list[dict[str, Any]]) -> Table:
    table = Table()
    for title in ("name", "part", "acts in", "frees\nmemory", "looks at\nqueries", "prompt in\nchunks", "forgets"):
        table.add_column(title, no_wrap=title == "name")
    for facts in listed:
        marks = ("yes" if facts[key] else "" for key in ("frees_memory", "query_aware"))
        phase = "both" if facts["phase"] == "prefill and decode" else facts["phase"]
        table.add_row(
            facts["name"], facts["part"], phase, *marks, facts["chunking"].replace("_", " "), facts["forgets"]
        )
    return table
