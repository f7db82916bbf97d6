"""docs/theory.md: the experiments and what came of them, from the registry and the file that `make theory` writes."""

from __future__ import annotations

from headwise.cli.commands.theory import limit, told
from headwise.experiments import EXPERIMENTS, Experiment, Run, shown_runs
from headwise.systems import systems

INTRO = """\
What papers state of attention, as experiments of seconds. `headwise theory` lists them, `headwise theory NAME` runs
one; `--picture FILE` draws it, `--json` prints its figures. Its knobs stand in brackets:
`headwise theory "head_size(tokens=16, seeds=10)"`.

A statement is made of parts. Each has a measure, a limit, and a control for which the same limit must not hold. An
experiment runs on several seeds, and intervals are 95 % over these, by Student's t.

- A part is **shown** where the measure's interval keeps to the limit and the control's lies beyond it; **negative**
  where the measure's own lies beyond; else **open**.
- An experiment is **shown** where all its parts are, **shown in part** where some are. Parts that hold by how a thing
  is built, such as that zero steps change nothing, do not count among the some. Where a card leaves something of a row
  of the [list of systems](reference/systems.md) out, the row is shown in part at most.

An experiment is one file of `src/headwise/theory/`, or of the `trials/` of a room: `lens` where it is of looking
inside, `context` of reading and finding documents, `vision` of pictures. It is a frozen dataclass with its knobs, a
card, its parts, and `draw(seed)`, which gives the figures of one seed.
`make theory` runs all of them and writes this page.
"""


def theory_page(made: str) -> str:
    """The page: a table, then a section an experiment."""
    known = shown_runs()
    runs = {run.experiment: run for run in known.runs} if known else {}
    lines = ["# Theory that can be run", "", made, INTRO]
    if known:
        lines += [f"Run on {known.machine['processor']}, {known.machine['cores']} cores.", ""]
    lines += ["| experiment | rows | came to | statement |", "| --- | --- | --- | --- |"]
    for name, one in EXPERIMENTS.all().items():
        rows = ", ".join(map(str, one.card.systems))
        came_to = runs[name].verdict["state"] if name in runs else "not run"
        lines.append(f"| [{name}](#{name}) | {rows} | **{came_to}** | {one.card.statement} |")
    for name, one in EXPERIMENTS.all().items():
        lines += ["", f"## {name}", "", *_section(one, runs.get(name))]
    return "\n".join(lines) + "\n"


def _section(one: type[Experiment], run: Run | None) -> list[str]:
    """The card, and where it was run the figures and the picture."""
    card = one.card
    names = {system.number: system.name for system in systems()}
    rows = "; ".join(f"{number} {names[number]}" for number in card.systems)
    lines = [
        f"{card.statement}.",
        "",
        f"- paper: {card.paper}",
        f"- its setting: {card.setting}",
        f"- row: {rows}",
        f"- differs: {card.differs}",
        *([f"- not tested of the row: {card.leaves_out}"] if card.leaves_out else []),
        f"- `headwise theory {one.name}`, about {card.seconds} s on two cores that are free",
        "",
    ]
    if run is None:
        return [*lines, "Not run yet."]
    where = f" on {run.machine['processor']}, {run.machine['cores']} cores" if run.machine else ""
    lines += [f"**{run.verdict['state'].capitalize()}**, `{run.sentence}`, {len(run.draws)} seeds{where}.", ""]
    lines += ["| statement | limit | found [95 %] | control | control found [95 %] | state |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for part in run.verdict["parts"]:
        lines.append(
            f"| {part['says']} | {limit(part)} | {told(part['found'])} | {part['without']} | "
            f"{told(part['control_found'])} | {part['state']} |"
        )
    return [*lines, "", f"![{card.title}](theory/{one.name}.png)"]
