"""`headwise methods`: every method with the facts of its card."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

LEAST_WIDTH = 150  # of a table that goes to a file or a pipe


def facts_of(name: str, cls: type) -> dict[str, Any]:
    """A method as plain JSON data: name, part, the card's fields, and its knobs with their defaults."""
    knobs = {field.name: field.default for field in fields(cls) if field.init}
    return {"name": name, "part": cls.part, **asdict(cls.card), "knobs": knobs}  # type: ignore[attr-defined]


def all_facts() -> list[dict[str, Any]]:
    """Every method, in the order of the parts."""
    from headwise.registry import all_methods

    return [facts_of(name, cls) for name, cls in all_methods().items()]


def signature(facts: dict[str, Any]) -> str:
    """`snapkv(budget=1.0, sinks=4, ...)`."""
    return f"{facts['name']}({', '.join(f'{knob}={value!r}' for knob, value in facts['knobs'].items())})"


def card_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The card of a method as (what, text)."""
    said = {True: "yes", False: "no"}
    return [
        ("knobs", signature(facts)),
        ("part", facts["part"]),
        ("paper", facts["paper"]),
        ("stands for systems", ", ".join(map(str, facts["systems"])) or "none"),
        ("phase", facts["phase"]),
        ("lossy", said[facts["lossy"]]),
        ("frees memory", said[facts["frees_memory"]]),
        ("looks at queries", said[facts["query_aware"]]),
        ("needs calibration", said[facts["calibrated"]]),
        ("prompt in chunks", facts["chunking"].replace("_", " ")),
        ("forgets", facts["forgets"]),
        ("differs from the paper", facts["deviations"]),
    ]


def stdout() -> Console:
    """The terminal, or a wide enough page where output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, LEAST_WIDTH))


def methods(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List every method: what it is, when it acts, what it forgets."""
    listed = all_facts()
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
        return
    table = Table()
    for title in ("name", "part", "acts in", "frees\nmemory", "looks at\nqueries", "prompt in\nchunks", "forgets"):
        table.add_column(title, no_wrap=title == "name")
    for facts in listed:
        marks = ("yes" if facts[key] else "" for key in ("frees_memory", "query_aware"))
        phase = "both" if facts["phase"] == "prefill and decode" else facts["phase"]
        table.add_row(
            facts["name"], facts["part"], phase, *marks, facts["chunking"].replace("_", " "), facts["forgets"]
        )
    stdout().print(table)
