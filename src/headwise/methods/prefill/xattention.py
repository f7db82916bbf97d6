"""XAttention: blocks scored by sums along their antidiagonals, every row read until its mass is reached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headwise.attention.view import View
from headwise.choose import choose, enough
from headwise.forms import Blocks, Where
from headwise.forms.where import BLOCK_ELEMENTS
from headwise.knobs import BlockSize, Positive, PositiveShare
from headwise.methods.blocks import Grid, group_sums
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "xattention")
@dataclass(frozen=True)
class XAttention(Prefill):
    """mass: share of the estimated attention that each block of queries must read (the paper's threshold).

    stride: one antidiagonal in so many is scored. size: tokens per block, a multiple of `stride`.
    """

    mass: PositiveShare = 0.9
    stride: Positive = 8
    size: BlockSize = 128

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="XAttention",
        paper="XAttention: Block Sparse Attention with Antidiagonal Scoring, arXiv 2503.16428",
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but blocks of the prompt with small antidiagonal sums are not read",
        deviations="one choice per KV head, by the mean over its query group; the first block and the query block's "
        "own are always read; one threshold for all heads",
    )

    def conflict(self) -> str | None:
        if self.size % self.stride:
            return f"size must be a multiple of stride, got size={self.size} and stride={self.stride}"
        return None

    def where(self, view: View) -> Where:
        """Blocks of keys by the softmax over antidiagonal sums."""
        grid = Grid.of(self.size, view.queries.shape[2], view.count, view.positions.device)
        scores = self._scores(view, grid)
        forced = grid.forced().expand_as(scores)
        counts = enough(scores.flatten(0, 1), self.mass, forced.flatten(0, 1))
        return grid.blocks(grid.best(scores, counts.view(scores.shape[:2]), forced))

    def _scores(self, view: View, grid: Grid) -> torch.Tensor:
        """Estimated attention of each block of queries on each block of keys, [h, query blocks, key blocks]."""
        stride, n, t = self.stride, view.count, view.queries.shape[2]
        keys = pad(view.keys.float(), (0, 0, 0, -n % self.size)).unflatten(1, (-1, stride)).flatten(2)
        queries = pad(view.queries.float(), (0, 0, 0, -t % self.size)).unflatten(2, (-1, stride)).flip(3).flatten(3)
        first = torch.arange(0, keys.shape[1] * stride, stride, device=keys.device)
        rows = max(1, BLOCK_ELEMENTS // (keys.shape[1] * queries.shape[0] * queries.shape[1] * self.size // stride))
        step, done = rows * self.size // stride, []
        for start in range(0, queries.shape[2], step):
            part = queries[:, :, start : start + step]
            begin = torch.arange(start, start + part.shape[2], device=keys.device) * stride
            ends = n - t + (begin + stride - 1).clamp(max=t - 1)
            reach = int(ends[-1]) // stride + 1  # the rest lies in the future
            sums = torch.einsum("hgad,hcd->hgac", part, keys[:, :reach]) * (view.scale / stride)
            weights = sums.masked_fill(first[:reach] > ends[:, None], -torch.inf).softmax(-1)
            weights = weights.mean(1) * (begin < t)[:, None]
            blocks = group_sums(weights, self.size // stride)
            blocks = pad(blocks, (0, len(grid.keys) - blocks.shape[-1]))
            done.append(group_sums(blocks.mT, self.size // stride).mT)
        return torch.cat(done, 1)

    def plain(self, view: View) -> Where:
        """The same one antidiagonal and one pair of blocks at a time."""
        (heads, group, t, _), n = view.queries.shape, view.count
        size, stride = self.size, self.stride
        seen = torch.zeros(heads, -(-t // size), -(-n // size), dtype=torch.bool)
        for h in range(heads):
            queries, keys = view.queries[h].double(), list(view.keys[h].double())
            scores = torch.zeros(seen.shape[1:], dtype=torch.float64)
            for a in range(0, t, stride):
                end = n - t + min(a + stride, t) - 1
                firsts = range(0, end + 1, stride)
                for asked in map(list, queries[:, a : a + stride]):
                    sums = [0.0] * len(firsts)
                    for c, first in enumerate(firsts):
                        for i in range(stride):
                            query, key = stride - 1 - i, first + i
                            if query < len(asked) and key < n:
                                sums[c] += float(asked[query] @ keys[key])
                    scaled = torch.tensor(sums, dtype=torch.float64) * view.scale / stride
                    for c, weight in enumerate(scaled.softmax(0).tolist()):
                        scores[a // size, firsts[c] // size] += weight / group
            for i, row in enumerate(scores):
                begin, past = n - t + i * size, (n - t + min(t, (i + 1) * size) - 1) // size + 1
                own = torch.arange(past) >= begin // size
                own[0] = True
                seen[h, i, choose(row[None, :past], enough(row[None, :past], self.mass, own[None]), own[None])[0]] = (
                    True
                )
        return Blocks.from_map(size, seen)
