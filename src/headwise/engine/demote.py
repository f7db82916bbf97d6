"""After the eviction: tokens go to the level of precision at which the recipe wants them from now on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.cache.kv_store import KVStore
from headwise.cache.span import Span
from headwise.engine.group import Group
from headwise.engine.read import Reading
from headwise.forms import Scoring


def demote(reading: Reading, group: Group, queries: list[torch.Tensor], spans: Sequence[Span]) -> None:
    """Ask the compression for the level of every stored token; queries [heads, g, w, d] by row, to look at.

    spans: layers whose tokens move together, when the last of them is asked.
    """
    span = next((one for one in spans if group.store in one.stores), None)
    if len(group.store.parts) == 1 or (span is not None and group.store is not span.stores[-1]):
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
    for part in group.store.parts:
        if part.unfitted:
            meet(part, queries, reading.scoring)
    (group.store if span is None else span).demote(wanted)


def meet_new(reading: Reading, group: Group, q: torch.Tensor) -> None:
    """`meet` for new tokens of every row, the last ones of queries [lanes, g, t, d]."""
    live = enumerate(reading.step.live)
    queries = [
        q[group.lanes(row).start : group.lanes(row).stop, :, max(0, q.shape[2] - count) :] for row, count in live
    ]
    meet(group.store, queries, reading.scoring)


def meet(store: KVStore, queries: Sequence[torch.Tensor], scoring: Scoring) -> None:
    """Tell a store that fits something to first tokens what meets their keys: queries [heads, g, w, d] by row."""
    energy = torch.cat([own.flatten(1, 2).float().square().sum(1) / max(1, own[0, :, :, 0].numel()) for own in queries])
    store.meet(energy, scoring.softcap is None)
