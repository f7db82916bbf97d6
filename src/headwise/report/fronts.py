"""Score over what it costs: every row of a comparison as a point, and the front that no other row beats.

`python -m headwise.report.fronts result.json picture.png` draws every method as a line over its budgets, and prints the
scores as a table in Markdown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headwise.errors import HeadwiseError
from headwise.files import write_bytes
from headwise.report.pictures import INK, PALE, ROLE_COLOURS, as_png, literal

MARKS = {"dense": "s", "plan": "o", "baseline": "x"}  # shapes tell what colours do
LINE = 0.032  # of the score's axis, that a line of names takes
MOST_NAMED = 9  # points of a front that carry their name
TUNED = "tuned plans"
HIGHLIGHTED: dict[str, dict[str, Any]] = {
    "random": {"color": ROLE_COLOURS["baseline"], "linewidth": 1.2, "linestyle": ":"},
    "streaming": {"color": ROLE_COLOURS["baseline"], "linewidth": 1.2, "linestyle": "--"},
    TUNED: {"color": ROLE_COLOURS["plan"], "linewidth": 2.6},
}
Point = tuple[float, float, str, str]  # cost, score, name, role


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none costs as little and scores more, or scores as much and costs less."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one[0], -one[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def fronts(result: dict[str, Any]) -> Figure:
    """Two pictures side by side: over bytes held by step, and over milliseconds of a new token."""
    rows = [row for row in result["rows"] if "overall" in row and row["role"] in MARKS]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bytes_held = [(100 * row["byte_steps_of_dense"], row["overall"]["mean"], row["name"], row["role"]) for row in rows]
    _points(left, bytes_held, "bytes held by step, % of dense attention")
    left.set_ylabel("score, mean over tasks")
    taken = {name: told["token_ms"] for name, told in result["timings"].items()}
    times = [(taken[row["name"]], row["overall"]["mean"], row["name"], row["role"]) for row in rows]
    _points(right, times, "time of a new token, ms (rough)")
    return figure


def _points(axes: Axes, points: Sequence[Point], label: str) -> None:
    for role, mark in MARKS.items():
        own = [point for point in points if point[3] == role]
        if own:
            costs, scores = [point[0] for point in own], [point[1] for point in own]
            axes.scatter(costs, scores, marker=mark, s=34, color=ROLE_COLOURS[role], label=role)
    best = front(points)
    axes.plot([p[0] for p in best], [p[1] for p in best], color=INK, linewidth=1, drawstyle="steps-post", zorder=0)
    for cost, score, name, _ in best[:MOST_NAMED]:
        below = (4, -11)
        axes.annotate(literal(name), (cost, score), xytext=below, textcoords="offset points", fontsize=7.5, color=INK)
    axes.set_xlabel(label)
    axes.set_ylim(-0.04, 1.05)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(color=PALE, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)


def families(result: dict[str, Any]) -> Figure:
    """Every method as a line over its budgets, score over bytes held after the prompt; plan files stand out."""
    lines = _lines(result)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    others = {name: line for name, line in lines.items() if name not in HIGHLIGHTED}
    ahead = {
        name
        for _, _, name, _ in front([(*point, name, "") for name, line in others.items() for point in line if point[1]])
    }
    best = sorted(others, key=lambda name: (name not in ahead, -_mean(lines[name])))
    for name in [*reversed(best), *(name for name in HIGHLIGHTED if name in lines)]:
        told = name in best[:MOST_NAMED] or name in HIGHLIGHTED
        costs, scores = zip(*sorted(lines[name]), strict=True)
        style = HIGHLIGHTED.get(name, {"color": INK if told else PALE, "linewidth": 1})
        axes.plot(costs, scores, marker="o", markersize=3, label=literal(name) if told else None, **style)
    dense = next(row["overall"]["mean"] for row in result["rows"] if row["role"] == "dense")
    axes.axhline(dense, color=ROLE_COLOURS["dense"], linewidth=0.8, linestyle="--", label="dense attention")
    _name(axes, [(*min(lines[name]), name) for name in best[:MOST_NAMED]])
    axes.set_xlabel("bytes of the cache, % of dense attention")
    axes.set_ylabel("score, mean over tasks")
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 25, 50], ["5", "10", "25", "50"])
    axes.minorticks_off()
    handles = [one for one in axes.get_lines() if one.get_label() in (*HIGHLIGHTED, "dense attention")]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="lower right")
    axes.grid(color=PALE, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _name(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name below it and to its right; where points crowd, one under the other with a line to it."""
    written: list[tuple[float, float]] = []
    for cost, score, name in sorted(points, key=lambda one: (-one[0], one[1])):
        place = score - LINE
        while any(abs(place - other) < LINE and 0.5 < cost / beside < 2 for beside, other in written):
            place -= LINE
        written.append((cost, place))
        line = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6}
        axes.annotate(literal(name), (cost, score), xytext=(1.03 * cost, place), fontsize=7, color=INK, arrowprops=line)


def _family(row: dict[str, Any]) -> str:
    """The name of a row without its budget; plan files are one family."""
    name = row["name"].split(" @ ")[0]
    return TUNED if row["recipe"].endswith(".plan") else name


def _mean(line: Sequence[tuple[float, float]]) -> float:
    """Mean score of a line: what decides, with being ahead of all others somewhere, whether it is named."""
    return sum(score for _, score in line) / len(line)


def _lines(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """By family, every (bytes in % of dense attention's, score)."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        if "overall" in row and row["role"] in ("plan", "baseline"):
            lines.setdefault(_family(row), []).append((100 * row["of_dense"], row["overall"]["mean"]))
    return lines


def scores_table(result: dict[str, Any]) -> str:
    """The families in Markdown, the best mean score first: the score at each of the cache's sizes it was held in."""
    shown = [row for row in result["rows"] if row["role"] == "plan" or row["share"] is not None]
    lines = sorted(_lines({"rows": shown}).items(), key=lambda one: -_mean(one[1]))
    rows = ["| | score at % of dense bytes |", "| --- | --- |"]
    for name, line in lines:
        told = ", ".join(f"{score:.2f} at {cost:.1f}" for cost, score in sorted(line, reverse=True))
        rows.append(f"| {name.replace('|', chr(92) + '|')} | {told} |")
    return "\n".join(rows)


def main(arguments: list[str]) -> None:
    """Draw and tell a comparison from the JSON that `headwise bench --json` or `headwise sweep` wrote."""
    if len(arguments) != 2:
        raise SystemExit("use: python -m headwise.report.fronts result.json picture.png")
    source, target = map(Path, arguments)
    try:
        result = json.loads(source.read_text())
        picture, table = as_png(families(result)), scores_table(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadwiseError(f"{source} is not the result of a bench or a sweep ({error!r}); run one again") from None
    write_bytes(target, picture)
    print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HeadwiseError as error:
        raise SystemExit(f"error: {error}") from None
