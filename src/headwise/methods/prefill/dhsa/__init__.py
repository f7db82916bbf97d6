"""DHSA: the keys are cut into chunks where the attention they get changes, and chunks are scored as wholes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.forms import Blocks, Causal, Where
from headwise.knobs import BlockSize, Factor, NonNegative, Positive
from headwise.methods.blocks import Grid, block_means
from headwise.methods.chunks import SIDE, both_sides, changes, cut, foretold, plain_foretold, spread
from headwise.methods.prefill import Prefill
from headwise.registry import CalibrationTensor, Card, register


@register("prefill", "dhsa")
@dataclass(frozen=True)
class Dhsa(Prefill):
    """keep: tokens that a block of queries reads beside the window. nearest: tokens of the window before the block.

    size: tokens per block. last: queries by whose attention chunks are cut. ratio: least change for a cut, above 1.
    """

    keep: Positive = 2048
    nearest: NonNegative = 64
    size: BlockSize = 32
    last: Positive = 64
    ratio: Factor = 1.1

    needs = frozenset({"keys", "queries", "rope", "calibration"})
    calibrates = {
        "hidden": CalibrationTensor("4d+3 n", "the first layer of the network that foretells changes", "dhsa"),
        "out": CalibrationTensor("n", "its second layer", "dhsa"),
    }
    card = Card(
        title="DHSA: dynamic hierarchical sparse attention",
        paper="Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs, arXiv 2510.24606, "
        "section 3",
        systems=(302,),
        phase="prefill",
        query_aware=True,
        calibrated=True,
        chunking="approximate",
        forgets="nothing is dropped, but tokens of chunks that match no mean query of a block are not read",
        deviations="without a calibration (`hidden` and `out`, the network that foretells changes from keys) "
        "boundaries come from the attention of the prompt's last queries itself; a boundary is where the change is "
        "largest within 4 tokens on either side; tokens are read in whole blocks, by the mean score of their tokens; "
        "one choice per KV head",
    )

    def where(self, view: View) -> Where:
        """Blocks by their tokens' chunks: the mean over a block of q . chunk is q . (mean of its tokens' chunks)."""
        grid = Grid.of(self.size, view.queries.shape[2], view.count, view.positions.device)
        forced = grid.near(-(-self.nearest // self.size))
        chunks = spread(view.keys.float(), self.starts(view))
        scores = block_means(view.queries.float().mean(1), self.size) @ block_means(chunks, self.size).mT
        return grid.blocks(grid.best(scores, forced.sum(1) + -(-self.keep // self.size), forced))

    def starts(self, view: View) -> torch.Tensor:
        """Where a chunk begins, bool [h, n]: the attention before and after differs most around here, or will do."""
        if "hidden" in view.calibration:
            return cut(foretold(both_sides(view), view.calibration), math.log(self.ratio))
        last = min(self.last, view.queries.shape[2])
        mass = column_mass(view.queries, view.keys, Causal(), view.scoring, last=last)
        return cut(changes(mass), math.log(self.ratio))

    def plain(self, view: View) -> Where:
        """The same one token and one block at a time."""
        (heads, _, t, _), n, size = view.queries.shape, view.count, self.size
        seen = torch.zeros(heads, -(-t // size), -(-n // size), dtype=torch.bool)
        for h in range(heads):
            keys, queries = view.keys[h].double(), view.queries[h].double()
            change = plain_foretold(view, h) if "hidden" in view.calibration else self._plain_changes(view, h)
            tops = [j for j in range(n) if change[j] == max(change[max(0, j - SIDE) : j + SIDE + 1])]
            edges = [0, *(j for j in tops if j and change[j] > math.log(self.ratio)), n]
            chunks = torch.zeros_like(keys)
            for a, b in pairwise(edges):
                chunks[a:b] = keys[a:b].mean(0) * (b - a) ** 0.5
            for i in range(seen.shape[1]):
                begin, past = n - t + i * size, (n - t + min(t, (i + 1) * size) - 1) // size + 1
                query = queries[:, i * size : (i + 1) * size].mean((0, 1))
                near = range(max(0, begin // size - -(-self.nearest // size)), past)
                scores = [float((chunks[j * size : (j + 1) * size] @ query).mean()) for j in range(near.start)]
                best = sorted(range(near.start), key=lambda j: (scores[j], j))[::-1]
                seen[h, i, [*near, *best[: -(-self.keep // size)]]] = True
        return Blocks.from_map(size, seen)

    def _plain_changes(self, view: View, h: int) -> list[float]:
        """Of one head, the changes of the attention that its last queries pay."""
        (_, group, t, _), n, keys = view.queries.shape, view.count, view.keys[h].double()
        mass = torch.zeros(n, dtype=torch.float64)
        for i in range(max(0, t - self.last), t):
            for g in range(group):
                scores = keys[: n - t + i + 1] @ view.queries[h, g, i].double() * view.scale
                mass[: n - t + i + 1] += scores.softmax(0)
        pairs = [(float(mass[max(0, j - SIDE) : j].sum()), float(mass[j : j + SIDE].sum())) for j in range(1, n)]
        return [0.0, *(math.log(max(pair) / max(min(pair), 1e-30)) for pair in pairs)]
