"""Block-local: every query reads its own block of tokens and a few blocks before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.blocks import Grid
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "block_local")
@dataclass(frozen=True)
class BlockLocal(Prefill):
    """size: tokens per block. before: blocks read before a query's own."""

    size: Positive = 1024
    before: NonNegative = 0

    needs = frozenset({"query_positions"})
    card = Card(
        title="Block-local prefill",
        paper="Image Transformer, arXiv 1802.05751, section 3.3: local attention over blocks of the sequence",
        phase="prefill",
        chunking="approximate",
        forgets="nothing is dropped, but what lies before a query's blocks is not read",
        deviations="the blocks of queries begin at the chunk's first token; one that begins inside a block of keys "
        "reads the two that it lies in",
    )

    def where(self, view: View) -> Where:
        """The blocks on the diagonal and `before` beside it."""
        grid = Grid.of(self.size, view.query_positions.shape[0], view.count, view.positions.device)
        return grid.blocks(grid.near(self.before).repeat(len(view.heads), 1, 1))

    def plain(self, view: View) -> Where:
        """The same block by block."""
        t, n, size = view.queries.shape[2], view.count, self.size
        seen = torch.zeros(len(view.heads), -(-t // size), -(-n // size), dtype=torch.bool)
        for i in range(seen.shape[1]):
            first, last = n - t + i * size, min(n - 1, n - t + (i + 1) * size - 1)
            for j in range(max(0, first // size - self.before), last // size + 1):
                seen[:, i, j] = True
        return Blocks.from_map(size, seen)
