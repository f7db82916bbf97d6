"""The table and the picture of compared layers, from the JSON of `headwise compare-layers` alone.

`python -m headwise.report.layers_table result.json picture.png` draws the picture.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from headwise.errors import HeadwiseError
from headwise.files import read_text, write_bytes
from headwise.findings import Finding, Part
from headwise.report.pictures import INK, PALE, as_png, literal

COLOURS = ("#0b6fb8", "#d9822b", "#2a8f5b", "#8a4fb0", "#b83b3b", "#5b6270", "#b59b00", "#1aa3a3")
DRAWN = 8  # sides of a panel beside the baselines: those that get most right at the longest


def table(result: Mapping[str, Any]) -> str:
    """All tasks as Markdown, the sides of each from the best at the longest texts down."""
    host, machine = result["host"], result["machine"]
    seeds = ", ".join(map(str, result["seeds"]))
    told = (
        f"{host['depth']} layers of {host['width']} channels and {host['heads']} heads, {host['batch']} sequences a "
        f"step, seeds {seeds}, {host['held']} sequences asked a length; `{result['command']}` on "
        f"{machine['processor']}, {machine['cores']} cores. Right answers with their 95 % intervals over seeds; then "
        "what a side gets right more than each baseline at the longest texts, in points, paired by seed: `above` or "
        "`below` where its interval excludes 0, else `open`."
    )
    return "\n\n".join([told, *(_table(result, task) for task in result["tasks"]), *stated(result)])


def stated(result: Mapping[str, Any]) -> list[str]:
    """What papers state, with what a run measured of it; nothing where it has no findings."""
    if not (found := [Finding.model_validate(one) for one in result.get("findings", [])]):
        return []
    lines = [_line(["row", "what its paper states", "measured, with its limit", "so it is"]), _line(["---"] * 4)]
    for one in found:
        parts = "; ".join(_part(part) for part in one.parts)
        lines.append(_line([str(one.row), one.says, parts, one.state]))
    return ["\n".join(lines)]


def _part(part: Part) -> str:
    found = part.found
    limit = f"above {part.above:g}" if part.above is not None else f"below {part.below:g}"
    return f"{part.says}: {found.mean:.3g} ({found.low:.3g} to {found.high:.3g}), {limit}"


def _table(result: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    lengths = [str(length) for length in task["lengths"]]
    head = ["side", "sentence", "rows", *(f"{length} tokens" for length in lengths)]
    head += [column for column, _ in _measured(task)]
    head += [f"minus {name}" for name in result["baselines"] if name in task["sides"]]
    lines = [f"`{task['task']}`, trained at {lengths[0]} tokens for {task['steps']} steps:", ""]
    lines += [_line(head), _line(["---"] * len(head))]
    for name, side in ordered(task):
        right = [_span(side["accuracy"][length]) for length in lengths]
        apart = [_apart(side["against"].get(other)) for other in result["baselines"] if other in task["sides"]]
        sentence = f"`{side['sentence']}`".replace("|", "\\|")
        sentence += f", {side['otherwise']}" if side.get("otherwise") else ""
        own = [shown(side) for _, shown in _measured(task)]
        lines.append(_line([name, sentence, ", ".join(map(str, side["systems"])), *right, *own, *apart]))
    return "\n".join(lines)


def _measured(task: Mapping[str, Any]) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """The columns of what is told of every side beside what it gets right, each with what a side has there."""
    columns: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
        "read": ("pairs read", lambda side: f"{100 * side['read']:.0f} %"),
        "state_bytes": ("bytes held", lambda side: f"{side['state_bytes']:,}"),
        "lr": ("rate", lambda side: f"{side['lr']:g}"),
    }
    return [column for name, column in columns.items() if all(name in side for side in task["sides"].values())]


def ordered(task: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The sides, from the one that gets most right at the longest texts."""
    longest = str(task["lengths"][-1])
    return sorted(task["sides"].items(), key=lambda one: -one[1]["accuracy"][longest]["mean"])


def _span(found: Mapping[str, float]) -> str:
    low, high = max(0.0, found["low"]), min(1.0, found["high"])
    return f"{100 * found['mean']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _apart(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{100 * found['mean']:+.1f} ({found['state']})"


def _line(cells: list[str]) -> str:
    return "| " + " ".join(f"{cell} |" if cell else "|" for cell in cells)


def picture(result: Mapping[str, Any]) -> Figure:
    """A panel a task: right answers over the length of texts, a line a side, every seed a dot."""
    tasks = result["tasks"]
    figure = Figure(figsize=(7.2 * len(tasks), 4.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        lengths = task["lengths"]
        others = [name for name, _ in ordered(task) if name not in result["baselines"]][:DRAWN]
        shown = [name for name, _ in ordered(task) if name in others or name in result["baselines"]]
        for name in shown:
            side = task["sides"][name]
            base = name in result["baselines"]
            colour = INK if base else COLOURS[others.index(name)]
            style = (":", "--", "-.")[result["baselines"].index(name) % 3] if base else "-"
            means = [100 * side["accuracy"][str(length)]["mean"] for length in lengths]
            axes.plot(lengths, means, style, color=colour, lw=1.6, label=literal(name))
            for seed in side["seeds"]:
                axes.plot(lengths, [100 * seed[str(length)] for length in lengths], ".", color=colour, ms=3, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_xlabel(f"tokens; trained at {lengths[0]}", fontsize=9)
        axes.set_ylabel("right answers, %", fontsize=9)
        axes.set_title(literal(f"{task['task']}, {task['steps']} steps"), fontsize=10, color=INK)
        axes.grid(color=PALE, lw=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main(arguments: list[str]) -> None:
    """Draw the picture of a result."""
    if len(arguments) != 2:
        raise SystemExit("use: python -m headwise.report.layers_table result.json picture.png")
    text = read_text(Path(arguments[0]))
    write_bytes(Path(arguments[1]), as_png(picture(json.loads(text)), dpi=110, source=text.encode()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HeadwiseError as error:
        raise SystemExit(f"error: {error}") from None
