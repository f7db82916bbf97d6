"""After the eviction: tokens go to the level of precision at which the recipe wants them from now on."""

from __future__ import annotations

import torch

from headwise.cache.levels import Levels
from headwise.engine.group import Group
from headwise.engine.read import Reading


def demote(reading: Reading, group: Group, queries: list[torch.Tensor]) -> None:
    """Ask the compression for the level of every stored token; queries [heads, g, w, d] by row, to look at."""
    if not isinstance(group.store, Levels):
        return
    wanted: list[torch.Tensor | None] = [None] * group.store.shape.lanes
    for run in group.runs(by_row=True):
        row = group.row_of(run[0])
        if reading.step.live[row] and group.store.lengths[run[0]]:
            first = group.lanes(row).start
            own = queries[row][run[0] - first : run[-1] + 1 - first]
            levels = group.recipe.compress.level(reading.view(group, run, group.recipe.compress, own))
            for lane, level in zip(run, levels, strict=True):
                wanted[lane] = level
    group.store.demote(wanted)
