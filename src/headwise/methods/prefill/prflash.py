"""PrFlashAttention: a block of keys joins with a probability that falls with its distance from the queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where
from headwise.knobs import NonNegative, Positive, PositiveShare
from headwise.methods.blocks import Grid
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "prflash")
@dataclass(frozen=True)
class PrFlash(Prefill):
    """share: expected share of the blocks beyond the window that a block of queries reads, 0 < x <= 1.

    local: blocks read before a query's own, always, as is the first. size: tokens per block.
    """

    share: PositiveShare = 0.5
    local: NonNegative = 2
    size: Positive = 64

    needs = frozenset({"query_positions"})
    card = Card(
        title="PrFlashAttention",
        paper="The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI, "
        "arXiv 2410.18441, its section on PrFlashAttention",
        systems=(45,),
        phase="prefill",
        chunking="approximate",
        forgets="nothing is dropped, but blocks are left unread by lot, the far ones most",
        deviations="the distribution over distances, which the paper leaves open, is (1 - x)^(1 / share - 1) at a "
        "distance of x times the farthest, whose mean is `share`; the first block and the window are always read; all "
        "heads of a layer draw alike; the lot is drawn anew in each layer",
    )

    def where(self, view: View) -> Where:
        """The blocks near and first, and those that were drawn."""
        grid = Grid.of(self.size, view.query_positions.shape[0], view.count, view.positions.device)
        fixed = grid.near(self.local) | (grid.keys == 0)
        far = grid.past & ~fixed
        distance = far.int().flip(1).cumsum(1).flip(1)  # among the blocks that may be left out, the nearest is 1
        drawn = self._lot(view, *far.shape).to(far.device) < self.probability(distance, far.sum(1, keepdim=True))
        return grid.blocks((fixed | (far & drawn)).expand(len(view.heads), -1, -1))

    def probability(self, distance: torch.Tensor, farthest: torch.Tensor) -> torch.Tensor:
        """Of reading the block at `distance` 1..farthest, in blocks; its mean over all distances is about `share`."""
        nearness = 1 - (distance - 0.5) / farthest.clamp(min=1)
        return nearness.clamp(min=0) ** (1 / self.share - 1)

    def _lot(self, view: View, queries: int, keys: int) -> torch.Tensor:
        """One random number below 1 per pair of blocks, [query blocks, key blocks]."""
        seed = view.seed * 1_000_003 + view.layer
        return torch.rand(queries, keys, generator=torch.Generator().manual_seed(seed))

    def plain(self, view: View) -> Where:
        """The same, block by block."""
        t, n, size = view.queries.shape[2], view.count, self.size
        seen = torch.zeros(len(view.heads), -(-t // size), -(-n // size), dtype=torch.bool)
        lot = self._lot(view, *seen.shape[1:]).tolist()
        for i in range(seen.shape[1]):
            first, last = n - t + i * size, min(n - 1, n - t + (i + 1) * size - 1)
            far = [j for j in range(last // size + 1) if 0 < j < first // size - self.local]
            for j in range(last // size + 1):
                chance = 1.0
                if j in far:
                    chance = (1 - (len(far) - far.index(j) - 0.5) / len(far)) ** (1 / self.share - 1)
                seen[:, i, j] = lot[i][j] < chance
        return Blocks.from_map(size, seen)
