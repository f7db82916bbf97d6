"""The picture of every method on really pretrained models: answers kept at one share of the cache.

`python -m headwise.report.real a.json b.json picture.png --share 0.25 0.5` draws what `headwise front` wrote, each at a
share of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headwise.errors import HeadwiseError
from headwise.files import write_bytes
from headwise.report.pictures import as_png, literal

PANELS = {"before": "question in the prompt", "after": "question after the eviction"}
CONTROLS = ("random", "streaming")
COLOURS = {"method": "#0b6fb8", "control": "#d9822b", "plan": "#1a7f4b"}
ROOM = 1.3  # of the share, up to which what takes more is drawn too: codecs and plans take what they take


def picture(results: Sequence[tuple[dict[str, Any], float]]) -> Figure:
    """A panel of bars for each model, at its share, and way of asking, with 95 % intervals, methods that keep most
    first, controls in their own colour; codecs and plans with the share that they take."""
    panels = [panel for result, share in results for panel in _panels(result, share)]
    figure = Figure(figsize=(5.5 * len(panels), 6.4), layout="constrained")
    for axes, (title, own) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _bars(axes, own)
        axes.set_title(literal(title), fontsize=11)
    return figure


def _panels(result: dict[str, Any], share: float) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows to draw of one model, by way of asking, with a title."""
    kept = [row for row in result["rows"] if row["equal"] == "bytes held" and "answers" in row]
    if share not in (shares := {row["at"] for row in kept if row["at"] is not None}):
        told = ", ".join(map(str, sorted(shares)))
        raise HeadwiseError(f"nothing was kept at a share of {share}; there are {told}")
    drawn = [row for row in kept if row["at"] in (share, None) and row["cost"] <= ROOM * share]
    ways = [way for way in PANELS if any(row["asked"] == way for row in drawn)]
    about = f"{result['host']['about']},\n{share:.0%} of the bytes"
    return [(f"{about}, {PANELS[way]}", [row for row in drawn if row["asked"] == way]) for way in ways]


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: row["answers"][0])
    means = [row["answers"][0] for row in ordered]
    spread = [[m - row["answers"][1] for m, row in zip(means, ordered, strict=True)],
              [row["answers"][2] - m for m, row in zip(means, ordered, strict=True)]]  # fmt: skip
    colours = [COLOURS[_role(row)] for row in ordered]
    axes.barh(range(len(ordered)), means, color=colours, xerr=spread, error_kw={"ecolor": "#7d8592", "elinewidth": 1})
    axes.set_yticks(range(len(ordered)), [literal(_name(row)) for row in ordered], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("of the answers that dense attention gives")


def _name(row: dict[str, Any]) -> str:
    """The method's name alone; of codecs and plans, that take what they take, with their share."""
    if row["at"] is not None:
        return str(row["arm"].split("(")[0])
    return f"{Path(row['arm']).stem if row['arm'].endswith('.plan') else row['arm']}, {row['cost']:.0%}"


def _role(row: dict[str, Any]) -> str:
    if row["arm"].endswith(".plan"):
        return "plan"
    return "control" if row["arm"].split("(")[0] in CONTROLS else "method"


def main() -> None:
    """Draw the picture of files."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("fronts", type=Path, nargs="+")
    reader.add_argument("picture", type=Path)
    reader.add_argument("--share", type=float, nargs="+", default=[0.25], help="one for all files, or one for each")
    given = reader.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in given.fronts]
    shares = given.share * len(results) if len(given.share) == 1 else given.share
    if len(shares) != len(results):
        reader.error(f"--share has {len(shares)} numbers for {len(results)} files; give one, or one for each")
    write_bytes(given.picture, as_png(picture(list(zip(results, shares, strict=True)))))


if __name__ == "__main__":
    main()
