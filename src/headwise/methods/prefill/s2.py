"""S2-Attention: the local blocks, and of the distant context a shard of its own for each head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where
from headwise.knobs import Positive, Whole
from headwise.methods.blocks import Grid
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "s2")
@dataclass(frozen=True)
class S2(Prefill):
    """stride: a head reads one in so many distant blocks, neighbouring heads different ones.

    local: blocks that all heads read, a query's own and those before it. step: shift from head to head.
    size: tokens per block.
    """

    stride: Positive = 16
    local: Positive = 16
    step: Whole = 1
    size: Positive = 64

    needs = frozenset({"query_positions"})
    card = Card(
        title="S2-Attention",
        paper="Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads, "
        "arXiv 2407.17678",
        systems=(4,),
        phase="prefill",
        chunking="approximate",
        forgets="nothing is dropped, but a head never reads the distant blocks of another head's shard",
        deviations="the model is used as it is, not trained with the pattern; s2_keep and s2_read decode so",
    )

    def where(self, view: View) -> Where:
        """Local blocks, and those whose number the head's own shift makes a multiple of `stride`."""
        grid = Grid.of(self.size, view.query_positions.shape[0], view.count, view.positions.device)
        block = torch.arange(len(grid.keys), device=grid.keys.device)
        shift = torch.tensor(view.heads, device=block.device)[:, None] * self.step
        shard = (block + shift) % self.stride == 0  # [h, key blocks]
        return grid.blocks(grid.near(self.local - 1) | shard[:, None])

    def plain(self, view: View) -> Where:
        """The same block by block."""
        t, n, size = view.queries.shape[2], view.count, self.size
        seen = torch.zeros(len(view.heads), -(-t // size), -(-n // size), dtype=torch.bool)
        for h, head in enumerate(view.heads):
            for i in range(seen.shape[1]):
                first, last = n - t + i * size, min(n - 1, n - t + (i + 1) * size - 1)
                for j in range(last // size + 1):
                    near = j > first // size - self.local
                    seen[h, i, j] = near or (j + head * self.step) % self.stride == 0
        return Blocks.from_map(size, seen)
