"""Vertical-slash: a few key columns that all queries read, and a few diagonals at fixed distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import VerticalSlash, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.prefill import Prefill, by_distance
from headwise.registry import Card, register


@register("prefill", "vertical_slash")
@dataclass(frozen=True)
class VerticalSlashes(Prefill):
    """Finds columns and diagonals in the attention of the chunk's last queries and reads only those.

    verticals, slashes: columns and diagonals read per KV head. last: queries the estimate is made from.
    first: first tokens that are always columns. nearest: shortest distances that are always diagonals.
    """

    verticals: NonNegative = 1000
    slashes: Positive = 6096
    last: Positive = 64
    first: NonNegative = 30
    nearest: Positive = 100

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="MInference: vertical-slash prefill",
        paper="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention, 2407.02490",
        systems=(242,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but the prompt's queries miss what its last queries did not look for",
        deviations="one choice per KV head, by the mean attention of its query group; exact columns and diagonals, "
        "which the paper's kernel widens to blocks; the forced columns and diagonals stay in when fewer are asked for; "
        "for one query head per KV head the indices are those of the released code",
    )

    def where(self, view: View) -> Where:
        """Columns by the sum of attention they receive, diagonals by the sum along them."""
        last, stored = min(self.last, view.queries.shape[2]), view.count
        columns, along = torch.zeros(2, len(view.heads), stored, device=view.positions.device)
        for head in range(len(view.heads)):
            rows = view.subset((head,)).observe(last).mean(1)  # [1, w, n]
            columns[head], along[head] = rows[0].sum(0), by_distance(rows)[0]
        return self._choose(columns, along)

    def _choose(self, columns: torch.Tensor, along: torch.Tensor) -> Where:
        """The best of columns [h, n] (by storage index) and diagonals [h, n] (by distance)."""
        place = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
        verticals = choose(columns, self.verticals, place < self.first)
        return VerticalSlash(verticals, choose(along, self.slashes, place < self.nearest))

    def plain(self, view: View) -> Where:
        """The same with one softmax row at a time, each pair added to its column and its diagonal."""
        heads, group, t, _ = view.queries.shape
        stored = view.positions.shape[1]
        columns, along = ([[0.0] * stored for _ in range(heads)] for _ in range(2))
        for h in range(heads):
            for i in range(max(0, t - self.last), t):
                end = stored - t + i + 1
                for g in range(group):
                    row = (view.keys[h, :end].double() @ view.queries[h, g, i].double() * view.scale).softmax(0)
                    for j, weight in enumerate(row.tolist()):
                        columns[h][j] += weight / group
                        along[h][end - 1 - j] += weight / group
        return self._choose(*torch.tensor((columns, along), dtype=torch.float64))
