"""The picture of every method on a really pretrained model: answers kept at one share of the cache.

`python -m headwise.report.real front.json picture.png --share 0.25` draws what `headwise front` wrote.
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
from headwise.report.pictures import ROLE_COLOURS, as_png, literal

PANELS = {"before": "question in the prompt", "after": "question after the eviction"}
CONTROLS = ("random", "streaming")


def picture(result: dict[str, Any], share: float) -> Figure:
    """Two panels of bars with 95 % intervals, methods that keep most first, controls in their own colour."""
    rows = [row for row in result["rows"] if row["equal"] == "bytes held" and row["at"] == share and "answers" in row]
    if not rows:
        held = sorted({row["at"] for row in result["rows"] if row["at"] is not None})
        raise HeadwiseError(f"nothing was kept at a share of {share}; there are {', '.join(map(str, held))}")
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, (asked, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        _bars(axes, [row for row in rows if row["asked"] == asked])
        axes.set_title(literal(title), fontsize=11)
    figure.suptitle(literal(f"{result['host']['about']}: {share:.0%} of the bytes"), fontsize=12)
    return figure


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: row["answers"][0])
    names = [row["arm"].split("(")[0] for row in ordered]
    means = [row["answers"][0] for row in ordered]
    spread = [[m - row["answers"][1] for m, row in zip(means, ordered, strict=True)],
              [row["answers"][2] - m for m, row in zip(means, ordered, strict=True)]]  # fmt: skip
    colours = [ROLE_COLOURS["baseline" if name in CONTROLS else "plan"] for name in names]
    axes.barh(range(len(names)), means, color=colours, xerr=spread, error_kw={"ecolor": "#7d8592", "elinewidth": 1})
    axes.set_yticks(range(len(names)), [literal(name) for name in names], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("of the answers that dense attention gives")


def main() -> None:
    """Draw the picture of a file."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("front", type=Path)
    reader.add_argument("picture", type=Path)
    reader.add_argument("--share", type=float, default=0.25)
    given = reader.parse_args()
    write_bytes(given.picture, as_png(picture(json.loads(given.front.read_text(encoding="utf-8")), given.share)))


if __name__ == "__main__":
    main()
