"""BigBird: a window of blocks, the first blocks, and a few blocks drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.blocks import Grid
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "bigbird")
@dataclass(frozen=True)
class BigBird(Prefill):
    """first: first blocks that every query reads. local: blocks read before a query's own. drawn: blocks at random.

    size: tokens per block.
    """

    first: NonNegative = 2
    local: NonNegative = 2
    drawn: NonNegative = 3
    size: Positive = 64

    needs = frozenset({"query_positions"})
    card = Card(
        title="BigBird pattern",
        paper="Big Bird: Transformers for Longer Sequences, arXiv 2007.14062, section 2",
        phase="prefill",
        chunking="approximate",
        forgets="nothing is dropped, but most blocks beyond the window are not read",
        deviations="causal, so the first blocks are read by all but read nothing that comes later; all heads and "
        "layers draw alike",
    )

    def where(self, view: View) -> Where:
        """Blocks near, first and drawn for each block of queries."""
        grid = Grid.of(self.size, view.query_positions.shape[0], view.count, view.positions.device)
        fixed = grid.near(self.local) | (grid.past & (grid.keys // self.size < self.first))
        lot = self._lot(view, *fixed.shape).to(fixed.device)
        drawn = grid.best(lot[None], fixed.sum(1) + self.drawn, fixed)
        return grid.blocks(drawn.expand(len(view.heads), -1, -1))

    def _lot(self, view: View, queries: int, keys: int) -> torch.Tensor:
        """One random number per pair of blocks, [query blocks, key blocks]."""
        return torch.rand(queries, keys, generator=torch.Generator().manual_seed(view.seed))

    def plain(self, view: View) -> Where:
        """The same, block by block."""
        t, n, size = view.queries.shape[2], view.count, self.size
        seen = torch.zeros(len(view.heads), -(-t // size), -(-n // size), dtype=torch.bool)
        lot = self._lot(view, *seen.shape[1:]).tolist()
        for i in range(seen.shape[1]):
            first, last = n - t + i * size, min(n - 1, n - t + (i + 1) * size - 1)
            past = range(last // size + 1)
            fixed = [j for j in past if j >= first // size - self.local or j < self.first]
            others = sorted((lot[i][j], j) for j in past if j not in fixed)[::-1]
            seen[:, i, fixed + [j for _, j in others[: self.drawn]]] = True
        return Blocks.from_map(size, seen)
