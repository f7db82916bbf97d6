"""FlexPrefill: each head decides by its last queries between blocks by mean keys and vertical and slash lines."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose, choose_mask, enough
from headwise.forms import Blocks, Where
from headwise.knobs import BlockSize, Positive, PositiveShare, Weight
from headwise.methods.blocks import Grid, block_means, group_sums
from headwise.methods.prefill import Prefill, by_distance
from headwise.registry import Card, register


@register("prefill", "flex_prefill")
@dataclass(frozen=True)
class FlexPrefill(Prefill):
    """mass: share of the estimated attention that what is read must hold (the paper's gamma).

    tau: below this distance (square root of the Jensen-Shannon divergence, nats) the estimate by means is trusted.
    least: tokens of columns and of diagonals that are read in any case. size: tokens per block.
    """

    mass: PositiveShare = 0.95
    tau: Weight = 0.1
    least: Positive = 1024
    size: BlockSize = 128

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="FlexPrefill",
        paper="FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference, "
        "arXiv 2502.20766",
        systems=(23,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but the prompt's queries miss what its last block of queries did not look for",
        deviations="one choice per KV head, by the mean attention of its query group; lines are counted in blocks, not "
        "tokens, and a diagonal reads both key blocks its distances reach: all blocks of the released code and more",
    )

    def where(self, view: View) -> Where:
        """Lines, and for the heads whose estimate is trusted blocks by pooled queries and keys."""
        grid = Grid.of(self.size, view.queries.shape[2], view.count, view.positions.device)
        last = min(self.size, view.queries.shape[2])
        probed = torch.cat([view.subset((i,)).observe(last).mean(1) for i in range(len(view.heads))])  # [h, last, n]
        columns, along = (group_sums(x, self.size) / last for x in (probed.sum(1), by_distance(probed)))
        queries, keys = view.queries.float().mean(1), block_means(view.keys.float(), self.size)
        guess = (queries[:, None, -last:].mean(2) @ keys.mT * view.scale).softmax(-1)[:, 0]
        trusted = _distance(guess, columns) < self.tau
        maps = (block_means(queries, self.size) @ keys.mT * view.scale).masked_fill(~grid.past, -torch.inf).softmax(-1)
        flat = maps.flatten(1)
        blocks = choose_mask(flat, enough(flat, self.mass), torch.zeros_like(flat, dtype=torch.bool)).view_as(maps)
        lines = self._lines(grid, columns, along, trusted)
        return grid.blocks(lines | (blocks & trusted[:, None, None]) | grid.forced())

    def _lines(self, grid: Grid, columns: torch.Tensor, along: torch.Tensor, trusted: torch.Tensor) -> torch.Tensor:
        """Bool [h, query blocks, key blocks]: columns and diagonals, each until its mass is reached; few if trusted."""
        fewest, first = -(-self.least // self.size), torch.zeros_like(columns, dtype=torch.bool)
        first[:, 0] = True
        drawn = []
        for mass in (columns, along):
            count = enough(mass, self.mass, first).masked_fill(trusted, 1).clamp(min=fewest)
            drawn.append(choose_mask(mass, count, first))
        far = ((grid.ends[:, None] - grid.keys) // self.size).clamp(min=-1, max=columns.shape[1] - 1)
        near = ((grid.starts[:, None] - grid.keys - self.size + 1) // self.size).clamp(min=0)
        below = torch.nn.functional.pad(drawn[1].int().cumsum(1), (1, 0))
        return drawn[0][:, None] | (below[:, far + 1] > below[:, near.clamp(max=columns.shape[1])])

    def plain(self, view: View) -> Where:
        """The same one head and one block at a time."""
        (heads, group, t, _), n, size = view.queries.shape, view.count, self.size
        last, count, fewest = min(size, t), -(-n // size), -(-self.least // size)
        spans = [(n - t + i, min(n, n - t + i + size) - 1) for i in range(0, t, size)]
        seen, first = torch.zeros(heads, len(spans), count, dtype=torch.bool), torch.arange(count)[None] == 0
        for h in range(heads):
            q, k = view.queries[h].double(), view.keys[h].double()
            means = torch.stack([block.mean(0) for block in k.split(size)])
            sums = [[0.0] * count for _ in range(2)]
            for i in range(t - last, t):
                for g in range(group):
                    row = (k[: n - t + i + 1] @ q[g, i] * view.scale).softmax(0) / group / last
                    for j, weight in enumerate(row.tolist()):
                        sums[0][j // size] += weight
                        sums[1][(n - t + i - j) // size] += weight
            columns, along = torch.tensor(sums, dtype=torch.float64)
            trusted = _distance((means @ q[:, -last:].mean((0, 1)) * view.scale).softmax(0), columns) < self.tau
            lines = []
            for x in (columns[None], along[None]):
                wanted = max(fewest, 1 if trusted else int(enough(x, self.mass, first)))
                lines.append(set(choose(x, wanted, first)[0].tolist()))
            map = torch.zeros(len(spans), count, dtype=torch.float64)
            for i, (_, end) in enumerate(spans):
                past = end // size + 1
                map[i, :past] = (means[:past] @ q[:, i * size : (i + 1) * size].mean((0, 1)) * view.scale).softmax(0)
            flat = map.view(1, -1)
            blocks = choose(flat, enough(flat, self.mass), torch.zeros_like(flat, dtype=torch.bool))[0].tolist()
            for i, (start, end) in enumerate(spans):
                for j in range(end // size + 1):
                    ways = {x // size for x in range(max(0, start - j * size - size + 1), end - j * size + 1)}
                    by_block = bool(trusted) and i * count + j in blocks
                    seen[h, i, j] = j in lines[0] or bool(ways & lines[1]) or by_block or j >= start // size
        return Blocks.from_map(size, seen)


def _distance(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Square root of the Jensen-Shannon divergence of distributions [..., n], in nats to the half."""
    middle = ((p + q) / 2).clamp(min=1e-30).log()
    apart = [(x * (x.clamp(min=1e-30).log() - middle)).sum(-1) for x in (p, q)]
    return ((apart[0] + apart[1]) / 2).clamp(min=0).sqrt()
