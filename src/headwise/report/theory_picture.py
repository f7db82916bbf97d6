"""Pictures of experiments, from the JSON of their runs alone; `python -m headwise.report.theory_picture RUNS
FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from headwise.errors import HeadwiseError
from headwise.files import read_text, write_bytes
from headwise.report.pictures import INK, PALE, as_png, literal

FOUND, CONTROL = "#0b6fb8", "#d9822b"
LINES = ("#0b6fb8", "#d9822b", "#5b6270", "#2a8f5b")
LEAST = 1e-3  # of the control's distance, within which the axis is linear
WRAPPED = 46  # characters of a line beside a bar
MOST_TICKS = 6  # points of a line that are each named on a logarithmic axis


def picture(run: Mapping[str, Any], panels: Mapping[str, Mapping[str, str]]) -> Figure:
    """What each part of the statement came to beside its control, and the experiment's own lines and maps.

    panels: the axes of each line's panel.
    """
    first = run["draws"][0]
    maps, lines = first.get("maps", {}), first.get("lines", {})
    parts = run["verdict"]["parts"]
    extra = len(maps) + len(lines)
    figure = Figure(figsize=(6.5 + 3.4 * extra, 1.3 + 0.75 * max(3, len(parts))), layout="constrained")
    ratios = [1.9] + [1.0] * extra
    axes = figure.subplots(1, 1 + extra, width_ratios=ratios, squeeze=False)[0]
    _parts(axes[0], parts)
    for place, title in enumerate([*lines, *maps], start=1):
        if title in lines:
            _lines(axes[place], [draw["lines"][title] for draw in run["draws"]], panels[title])
        else:
            _map(axes[place], maps[title])
        axes[place].set_title(title, fontsize=9, color=INK, wrap=True)
    figure.suptitle(literal(f"{run['sentence']}: {run['verdict']['state']}"), fontsize=11, color=INK)
    return figure


def _parts(axes: Axes, parts: Sequence[Mapping[str, Any]]) -> None:
    """How far measures and controls lie from their limits, in units of the control's distance; left keeps to it."""
    for place, part in enumerate(parts):
        limit, side = (part["below"], 1) if part["below"] is not None else (part["above"], -1)
        unit = abs(part["control_found"]["mean"] - limit) or 1.0
        for name, colour, shift in (("found", FOUND, -0.13), ("control_found", CONTROL, 0.13)):
            ends = [side * (part[name][end] - limit) / unit for end in ("low", "mean", "high")]
            axes.plot(ends[::2], [place + shift] * 2, color=colour, lw=2)
            axes.plot(ends[1], place + shift, "o", color=colour, ms=5)
    axes.axvline(0, color=INK, lw=1)
    axes.set_xscale("symlog", linthresh=LEAST)
    axes.set_xticks([-1, -0.01, 0, 0.01, 1], ["-1", "-0.01", "limit", "0.01", "1"])
    axes.invert_yaxis()
    told = [f"{_wrapped(part['says'])}\n{_side(part)}, {part['state']}" for part in parts]
    axes.set_yticks(range(len(parts)), told, fontsize=7)
    axes.set_xlabel("from the limit: blue as found, orange the control; 95 % over seeds", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=PALE, labelsize=7)


def _wrapped(text: str) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > WRAPPED:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return literal("\n".join(lines))


def _side(part: Mapping[str, Any]) -> str:
    return f"below {part['below']:g}" if part["below"] is not None else f"above {part['above']:g}"


def _lines(axes: Axes, draws: Sequence[Mapping[str, Any]], panel: Mapping[str, str]) -> None:
    """Each line of every seed, pale, and their mean where all have the same x."""
    for name, colour in zip(draws[0], LINES, strict=False):
        seeds = [draw[name] for draw in draws]
        for points in seeds:
            axes.plot(*zip(*points, strict=True), color=colour, lw=0.8, alpha=0.35)
        if all([x for x, _ in points] == [x for x, _ in seeds[0]] for points in seeds):
            means = [sum(points[place][1] for points in seeds) / len(seeds) for place in range(len(seeds[0]))]
            axes.plot([x for x, _ in seeds[0]], means, color=colour, lw=2, label=literal(name))
    axes.set_xscale("log" if "x" in panel["log"] else "linear")
    axes.set_yscale("log" if "y" in panel["log"] else "linear")
    if "x" in panel["log"] and len(places := sorted({x for line in draws[0].values() for x, _ in line})) <= MOST_TICKS:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(panel["x"], fontsize=8)
    axes.set_ylabel(panel["y"], fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _map(axes: Axes, cells: Sequence[Sequence[float]]) -> None:
    """Cells from -1 to 1."""
    axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.tick_params(labelsize=7)


def main(arguments: list[str]) -> None:
    """Draw every run of a file into a folder, a picture each."""
    if len(arguments) != 2:
        raise SystemExit("use: python -m headwise.report.theory_picture runs.json FOLDER")
    source, folder = map(Path, arguments)
    for run in json.loads(read_text(source))["runs"]:
        data = json.dumps(run, sort_keys=True).encode()
        write_bytes(folder / f"{run['experiment']}.png", as_png(picture(run, run["panels"]), dpi=100, source=data))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HeadwiseError as error:
        raise SystemExit(f"error: {error}") from None
