"""Block-sparse: each block of queries reads the blocks of keys whose mean it matches best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where
from headwise.knobs import BlockSize, Positive
from headwise.methods.blocks import Grid, block_means
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "block_sparse")
@dataclass(frozen=True)
class BlockSparse(Prefill):
    """blocks: key blocks that a block of queries reads, the first and its own included. size: tokens per block."""

    blocks: Positive = 100
    size: BlockSize = 64

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="MInference: block-sparse prefill",
        paper="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention, 2407.02490",
        systems=(242,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but blocks of the prompt whose mean key matches no mean query are not read",
        deviations="one choice per KV head, by the mean query of its group; the first block and the query block's own "
        "are always read, and count; else, for one query head per KV head, blocks are those of the released code; a "
        "short last block is averaged over its tokens, not over padding",
    )

    def where(self, view: View) -> Where:
        """Key blocks per query block by the dot product of their means."""
        keys, queries = view.keys.float(), view.queries.float().mean(1)
        grid = Grid.of(self.size, queries.shape[1], view.count, keys.device)
        scores = block_means(queries, self.size) @ block_means(keys, self.size).mT  # [h, query blocks, key blocks]
        return grid.blocks(grid.best(scores, self.blocks, grid.forced()))

    def plain(self, view: View) -> Where:
        """The same with one pair of blocks at a time."""
        heads, _, t, _ = view.queries.shape
        stored, size = view.positions.shape[1], self.size
        seen = torch.zeros(heads, -(-t // size), -(-stored // size), dtype=torch.bool)
        for h in range(heads):
            for i in range(seen.shape[1]):
                first, last = stored - t + i * size, stored - t + min((i + 1) * size, t) - 1
                query = view.queries[h, :, i * size : (i + 1) * size].double().mean((0, 1))
                means = [view.keys[h, j * size : (j + 1) * size].double().mean(0) for j in range(last // size + 1)]
                own = {0, *range(first // size, last // size + 1)}
                best = sorted(((float(query @ mean), j) for j, mean in enumerate(means)), reverse=True)
                others = [j for _, j in best if j not in own]
                seen[h, i, sorted(own) + others[: max(0, self.blocks - len(own))]] = True
        return Blocks.from_map(size, seen)
