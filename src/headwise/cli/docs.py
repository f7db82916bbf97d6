"""What is written into the docs: `python -m headwise.cli.docs docs` (`make docs`).

All of docs/reference/, from the code and from the JSON of runs in docs/data/, and the tables of figures in the pages
that people write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer.main

from headwise.bench.compose import page as composition_page
from headwise.calibrate.calibrate import measures
from headwise.cli.arrangers_page import arrangers_page
from headwise.cli.claims_page import claims_page
from headwise.cli.commands.methods import all_facts, card_lines, signature
from headwise.cli.conversions_page import conversions_page
from headwise.cli.figures import OPENING, filled
from headwise.cli.generation_page import generation_page
from headwise.cli.layers_page import layers_page
from headwise.cli.main import app
from headwise.cli.models_page import models_page
from headwise.cli.real_page import real_page
from headwise.cli.tasks_page import tasks_page
from headwise.cli.theory_page import theory_page
from headwise.files import read_text, write_text
from headwise.systems import systems

MADE = "<!-- Written by `make docs` from the code; change the code instead. -->\n"


def methods_page() -> str:
    """The table of methods, a card of each, and the measures that calibrate them."""
    listed = all_facts()
    lines = [
        "# Methods",
        "",
        MADE,
        "A recipe has at most one part of each kind, in any order: `prefill | evict | budget | compress | select | "
        "steer`.",
        "",
        "| name | part | acts in | frees memory | looks at queries | prompt in chunks | forgets |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for facts in listed:
        marks = " | ".join("yes" if facts[key] else "" for key in ("frees_memory", "query_aware"))
        chunks = facts["chunking"].replace("_", " ")
        lines.append(
            f"| [{facts['name']}](#{facts['name']}) | {facts['part']} | {facts['phase']} | {marks} | {chunks} | "
            f"{facts['forgets']} |"
        )
    for facts in listed:
        lines += ["", f"## {facts['name']}", "", f"{facts['title']}. `{signature(facts)}`", ""]
        lines += [f"- {label}: {text}" for label, text in card_lines(facts) if label != "knobs"]
    lines += ["", "## What is measured", ""]
    lines += ["`headwise calibrate --only NAME,NAME` takes these measures alone.", ""]
    lines += ["| measure | what is found |", "| --- | --- |"]
    lines += [f"| {name} | {one.about} |" for name, one in sorted(measures().items())]
    return "\n".join(lines) + "\n"


def systems_page() -> str:
    """The list of systems with what stands for each."""
    lines = [
        "# Systems",
        "",
        MADE,
        "The published systems that headwise is to hold, and the [methods](methods.md) whose cards say that they stand",
        "for one or for a part of it. `headwise systems NAME` says what has to hold for one to count as working.",
        "",
        "What its [claims](../claims.md) came to is its state.",
        "",
        "| number | system | tier | family | state | here | title |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in systems():
        here = ", ".join(name if " " in name else f"[{name}](methods.md#{name})" for name in one.here)
        lines.append(f"| {one.number} | {one.name} | {one.tier} | {one.family} | {one.state} | {here} | {one.title} |")
    return "\n".join(lines) + "\n"


GRAMMAR = """All commands are written alike:

- The **model** is an argument, a path or hub id: the first, as in `headwise run MODEL`, or the second where a plan or
  recipe is judged, as in `headwise check PLAN MODEL`. Without one it is the embedded model. `headwise` and `python -m
  headwise` are the same.
- `--recipe` is a recipe, `--plan` a plan file, `--task` a task; what may be given often is said below. Sizes need no
  quotes of their own: `--recipe "snapkv(64MiB) | int8"`.
- `--memory` is bytes that the cache may hold after the prompt, `--share` the same as a share of dense bytes, above 0
  and up to 1. `--context` is tokens of a prompt, like 8192 or 8k, `--train-context` tokens of a document to learn
  from. Where several values are taken they have commas between.
- `--json` prints one JSON object on stdout. Everything else goes to stderr: what is being done, how far it is
  and about how long it will take, and every finished row at once.
- What takes long **goes on where it was stopped**: the same command again takes over what is finished. That is kept
  with the user's caches (`XDG_CACHE_HOME`, else `~/.cache`) until the command is through, or for good in the folder
  of `--state`; `headwise sweep` and `headwise calibrate` keep it in their `--out`. `--fresh` begins anew. Results are
  taken over only where model, options, versions and machine are the same.
- Exit codes: 0 done, 1 done with a bad verdict (`check`, `fit`, `doctor`), 2 refused, 130 stopped by Ctrl-C.
"""


def cli_page() -> str:
    """How commands are written, then every command with its arguments and options."""
    lines = ["# Commands", "", MADE, GRAMMAR]
    for path, command in _commands("headwise", typer.main.get_command(app)):
        lines += [f"## {path}", "", (command.help or "").strip(), ""]
        shown = (one for one in command.params if one.name != "help" and not getattr(one, "hidden", False))
        if rows := [_parameter(one) for one in shown]:
            lines += ["| argument or option | default | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(path: str, command: Any) -> list[tuple[str, Any]]:
    """(full name, command) of a command and all below it."""
    found = [(path, command)]
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        found += _commands(f"{path} {name}", inner)
    return found


def _parameter(one: Any) -> str:
    """A table row."""
    names = ", ".join(f"`{name}`" for name in one.opts) if one.param_type_name == "option" else f"`{one.name.upper()}`"
    default = "" if one.default is None or one.default == "" or one.default is False else f"`{one.default}`"
    default = "required" if one.required else default
    return f"| {names} | {default} | {getattr(one, 'help', None) or ''} |"


PAGES: dict[str, Callable[[], str]] = {
    "arrangers.md": lambda: arrangers_page(MADE),
    "conversions.md": lambda: conversions_page(MADE),
    "cli.md": cli_page,
    "layers.md": lambda: layers_page(MADE),
    "methods.md": methods_page,
    "systems.md": systems_page,
    "tasks.md": lambda: tasks_page(MADE),
}
# The pages of a run, each from the JSON of its name.
OF_RUNS: dict[str, Callable[[str, Any], str]] = {"composition": composition_page, "generation": generation_page}


def texts(folder: Path) -> dict[Path, Callable[[], str]]:
    """By the path of every page that is written, or has a table of figures: what makes the text that it should have."""
    data, reference = folder / "data", folder / "reference"
    made = {reference / name: page for name, page in PAGES.items()}
    made[folder / "claims.md"] = lambda: claims_page(MADE)
    made[folder / "theory.md"] = lambda: theory_page(MADE)
    made[folder / "models.md"] = lambda: models_page(MADE, _read(data / "models"), _kinds(data))
    made[folder / "real.md"] = lambda: real_page(MADE, _read(data / "real"))
    for name, page in OF_RUNS.items():
        made[reference / f"{name}.md"] = partial(_of_run, page, data / f"{name}.json")
    written = {path: read_text(path) for path in sorted(folder.glob("*.md"))}
    return made | {path: partial(filled, text, data) for path, text in written.items() if OPENING.search(text)}


def _read(folder: Path) -> list[Any]:
    """The JSON files of a folder, by name; none where there is no such folder."""
    return [json.loads(read_text(path)) for path in sorted(folder.glob("*.json"))]


def _kinds(data: Path) -> dict[str, Any] | None:
    """What `benchmarks/kinds.py` found, where it was run."""
    path = data / "kinds.json"
    return json.loads(read_text(path)) if path.is_file() else None


def _of_run(page: Callable[[str, Any], str], data: Path) -> str:
    source = f"<!-- Written by `make docs` from data/{data.name}; run again what that was found by instead. -->\n"
    return page(source, json.loads(read_text(data)))


def main(folder: Path) -> None:
    """Write every page."""
    for path, text in texts(folder).items():
        write_text(path, text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
