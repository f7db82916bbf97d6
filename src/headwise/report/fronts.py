"""Score over what it costs: every row of a comparison as a point, and the front that no other row beats.

`python -m headwise.report.fronts result.json data.json picture.png` writes the scores of every method by its budgets
and the picture that is drawn of them, and prints them as a table in Markdown. result.json is what `headwise bench`
or `headwise sweep` wrote.
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
from headwise.report.names import Names
from headwise.report.pictures import INK, PALE, ROLE_COLOURS, as_png, literal

MARKS = {"dense": "s", "plan": "o", "baseline": "x"}  # shapes tell what colours do
MOST_NAMED = 9  # points of a front that carry their name
TUNED = "tuned plans"
HIGHLIGHTED: dict[str, dict[str, Any]] = {
    "random": {"color": ROLE_COLOURS["baseline"], "linewidth": 1.2, "linestyle": ":"},
    "streaming": {"color": ROLE_COLOURS["baseline"], "linewidth": 1.2, "linestyle": "--"},
    TUNED: {"color": ROLE_COLOURS["plan"], "linewidth": 2.6},
}
PLAIN = {"streaming": "sinks + recent tokens", "random": "random tokens"}
DIM = "#7d8592"
SINGLE = {"color": INK, "linewidth": 1.2}
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


def points(result: dict[str, Any]) -> dict[str, Any]:
    """What the picture and the table of a comparison are made of: dense attention, and rows at the sizes asked for."""
    shown = [row for row in result["rows"] if "overall" in row and row["role"] in MARKS]
    rows = [
        {**{key: row[key] for key in ("name", "role", "recipe", "share", "of_dense")}, "score": row["overall"]["mean"]}
        for row in shown
        if row["role"] != "baseline" or row["share"] is not None
    ]
    return {"units": {"of_dense": "bytes of dense attention's cache", "score": "mean over tasks, 0 to 1"}, "rows": rows}


def families(data: dict[str, Any]) -> Figure:
    """Every method's score over the bytes that it holds. Lines with their names: plan files, the methods that no other
    beats somewhere, and the two simplest; all others are points. data: of `points`."""
    lines = _lines(data)
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    dense = next(row["score"] for row in data["rows"] if row["role"] == "dense")
    axes.axhline(dense, color=ROLE_COLOURS["dense"], linewidth=0.9, linestyle="--", zorder=1)
    others = [(*point, name, "") for name, line in lines.items() if name not in HIGHLIGHTED for point in line]
    best = list(dict.fromkeys(name for _, score, name, _ in front(others) if score))
    faint = [point[:2] for point in others if point[2] not in best]
    axes.scatter([x for x, _ in faint], [y for _, y in faint], s=14, color=PALE, zorder=1)
    for name in (one for one in (*best, *HIGHLIGHTED) if one in lines):
        costs, scores = zip(*sorted(lines[name]), strict=True)
        axes.plot(costs, scores, marker="o", markersize=4, label=literal(name), **HIGHLIGHTED.get(name, SINGLE))
    _scales(axes)
    names = Names(axes)
    for line in [*([point] for point in faint), *(lines[one] for one in (*best, *HIGHLIGHTED) if one in lines)]:
        names.taken(line)
    names.taken([(axes.get_xlim()[0], dense), (axes.get_xlim()[1], dense)])
    names.write("dense attention", (axes.get_xlim()[1], dense), ROLE_COLOURS["dense"])
    for name in (one for one in (*HIGHLIGHTED, *best) if one in lines):
        ends = max(lines[name]) if name in PLAIN else min(lines[name])
        names.write(literal(PLAIN.get(name, name)), ends, HIGHLIGHTED.get(name, SINGLE)["color"])
    if faint:
        names.write("grey: all other methods", max(faint, key=lambda point: point[0] - 100 * point[1]), DIM)
    return figure


def _scales(axes: Axes) -> None:
    axes.set_xlabel("bytes of the cache, % of dense attention")
    axes.set_ylabel("score, mean over tasks")
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 25, 50], ["5", "10", "25", "50"])
    axes.set_xlim(4.2, 90)
    axes.set_ylim(-0.04, 1.06)
    axes.minorticks_off()
    axes.grid(color=PALE, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _family(row: dict[str, Any]) -> str:
    """The name of a row without its budget; plan files are one family."""
    name = row["name"].split(" @ ")[0]
    return TUNED if row["recipe"].endswith(".plan") else name


def _mean(line: Sequence[tuple[float, float]]) -> float:
    """Mean score of a line: what decides, with being ahead of all others somewhere, whether it is named."""
    return sum(score for _, score in line) / len(line)


def _lines(data: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """By family, every (bytes in % of dense attention's, score)."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in data["rows"]:
        if row["role"] != "dense":
            lines.setdefault(_family(row), []).append((100 * row["of_dense"], row["score"]))
    return lines


def scores_table(data: dict[str, Any]) -> str:
    """The families in Markdown, the best mean score first: the score at each of the cache's sizes it was held in."""
    lines = sorted(_lines(data).items(), key=lambda one: -_mean(one[1]))
    rows = ["| | score at % of dense bytes |", "| --- | --- |"]
    for name, line in lines:
        told = ", ".join(f"{score:.2f} at {cost:.1f}" for cost, score in sorted(line, reverse=True))
        rows.append(f"| {name.replace('|', chr(92) + '|')} | {told} |")
    return "\n".join(rows)


def main(arguments: list[str]) -> None:
    """Write the data of a comparison's picture, draw it, and print its table."""
    if len(arguments) != 3:
        raise SystemExit("use: python -m headwise.report.fronts result.json data.json picture.png")
    source, target, drawn = map(Path, arguments)
    try:
        data = points(json.loads(source.read_text()))
        told = (json.dumps(data, indent=1) + "\n").encode()
        picture, table = as_png(families(data), source=told), scores_table(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadwiseError(f"{source} is not the result of a bench or a sweep ({error!r}); run one again") from None
    write_bytes(target, told)
    write_bytes(drawn, picture)
    print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HeadwiseError as error:
        raise SystemExit(f"error: {error}") from None
