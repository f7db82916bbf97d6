"""Names written into a picture beside what they name, none over another, over a point or over a line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

Place = tuple[float, float]
# Where a name may stand, in points from its point, with its alignment: near places first.
ASIDE = [
    (shift * across, up * down, "left" if across > 0 else "right", "top" if up < 0 else "bottom")
    for down in (5, 14, 24, 34, 44, 56, 70)
    for up in (-1, 1)
    for across in (1, -1)
    for shift in (3, 16, 30)
]


class Names:
    """The names of one pair of axes, whose scales are set; `taken` first, for all that no name may cover."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        figure = axes.figure
        assert isinstance(figure, Figure)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()  # settles the layout, without which no place in the picture is known
        self.covered: list[np.ndarray] = []
        self.written: list[Bbox] = []

    def taken(self, line: Sequence[Place]) -> None:
        """A line through these points, or one point."""
        corners = self.axes.transData.transform(sorted(line))
        self.covered.append(corners)
        for start, end in pairwise(corners):
            self.covered.append(np.linspace(start, end, 60))

    def write(self, name: str, point: Place, colour: str) -> None:
        """A name in the first free place beside its point, with a thin line to it from farther places."""
        best = min(ASIDE, key=lambda place: (self._overlaps(name, point, place), ASIDE.index(place)))
        x, y, side, edge = best
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6} if abs(y) > 5 else None
        text = self.axes.annotate(
            name, point, xytext=(x, y), textcoords="offset points", ha=side, va=edge, fontsize=8.5, color=colour,
            arrowprops=line,
        )  # fmt: skip
        self.written.append(text.get_window_extent())

    def _overlaps(self, name: str, point: Place, place: tuple[float, float, str, str]) -> float:
        """How much a name would cover there: points and names, the picture's edge counting like many."""
        x, y, side, edge = place
        text = self.axes.annotate(
            name, point, xytext=(x, y), textcoords="offset points", ha=side, va=edge, fontsize=8.5
        )  # fmt: skip
        box = text.get_window_extent().padded(2)
        text.remove()
        inside = self.axes.get_window_extent()
        beyond = max(0, inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1)
        points = sum(int(((one > (box.x0, box.y0)) & (one < (box.x1, box.y1))).all(1).sum()) for one in self.covered)
        return points + 100 * box.count_overlaps(self.written) + 100 * beyond
