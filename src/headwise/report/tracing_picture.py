"""A picture of causal tracing, from what `benchmarks/lens_tracing.py` finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headwise.report.pictures import INK, literal, squared


def picture(traced: Mapping[str, Any]) -> Figure:
    """By kind of contrast, what each head brings back of the answer, and where those that were found do."""
    kinds = traced["kinds"]
    figure = Figure(figsize=(6.2 * len(kinds), 7.2), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False, height_ratios=[1.4, 1])
    for column, (name, kind) in enumerate(kinds.items()):
        cells = np.array(squared(kind["effects"]), dtype=float)
        _shown(axes[0][column], cells, f"{name}: of the answer, by head", "head", "layer")
        for layer, head in traced["found"]:
            axes[0][column].text(head, layer, f"{cells[layer, head]:.0%}", ha="center", va="center", fontsize=7)
        if not traced["found"]:
            axes[1][column].set_axis_off()
            continue
        heads = [f"{layer}.{head}" for layer, head in traced["found"]]
        _shown(axes[1][column], np.array(kind["places"]), f"{name}: by place of the text", "place", "head found")
        axes[1][column].set_yticks(range(len(heads)), heads, fontsize=7)
    title = f"{traced['model']}: what one head of the clean prompt brings back of its answer"
    figure.suptitle(literal(title), fontsize=11, color=INK)
    return figure


def _shown(axes: Axes, cells: np.ndarray, title: str, across: str, down: str) -> None:
    """Cells from -1 to 1, the weak ones told apart from nothing by the square root of their size."""
    axes.imshow(np.sign(cells) * np.abs(cells) ** 0.5, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    axes.tick_params(labelsize=7)
