"""HiP: each block of queries finds its best blocks of keys by halving chunks, in logarithmically many looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Gathered, Where
from headwise.forms.where import BLOCK_ELEMENTS
from headwise.knobs import BlockSize, NonNegative, Positive
from headwise.methods.blocks import Grid
from headwise.methods.prefill import Prefill
from headwise.methods.tree import descend, plain_descend
from headwise.registry import Card, register


@register("prefill", "hip")
@dataclass(frozen=True)
class Hip(Prefill):
    """keep: tokens that a block of queries reads beside the first block and its own. size: queries per block.

    local: blocks of queries before its own whose keys are always read. width: keys per block that is found.
    """

    keep: Positive = 512
    size: BlockSize = 32
    local: NonNegative = 4
    width: BlockSize = 2

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="HiP: hierarchically pruned prefill",
        paper="A Training-free Sub-quadratic Cost Transformer Model Serving Framework With Hierarchically Pruned "
        "Attention, arXiv 2406.09827",
        systems=(10,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but a chunk whose middle block matches badly is not read, whatever is beside it",
        deviations="one choice per KV head, by the largest score over the group; chunks are powers of two blocks wide "
        "and judged by their middle block, by every query (released code: by the first, by every other query): other "
        "blocks, that hold as much attention; the plain kernel takes the small blocks out, no native one does",
    )

    def conflict(self) -> str | None:
        if self.keep < self.width:
            return f"keep must be at least one block of keys, got keep={self.keep} and width={self.width}"
        if self.size % self.width:
            return f"size must be a multiple of width, got size={self.size} and width={self.width}"
        return None

    def where(self, view: View) -> Where:
        """The blocks that the search ends with, and the fixed ones."""
        size, width, (heads, _, t, _), device = self.size, self.width, view.queries.shape, view.keys.device
        grid = Grid.of(size, t, view.count, device)
        # a short last block repeats its last token, which changes no maximum
        queries = _blocks(view.queries.float().transpose(1, 2), size)
        keys = _blocks(view.keys.float(), width)
        leaves, chunks = grid.ends // width + 1, self.keep // width
        fixed = grid.near(self.local) | grid.forced()
        rows = max(1, BLOCK_ELEMENTS // (2 * chunks * width * max(queries.shape[3] * size, keys.shape[3])))
        columns = []
        for h in range(heads):
            parts = []
            for part in torch.arange(len(leaves), device=device).split(rows):
                found = descend(partial(_maxima, queries[h, part].flatten(1, 2), keys[h]), leaves[part], chunks)
                always = fixed[part].repeat_interleave(size // width, 1)[:, : found.shape[1]]
                within = torch.arange(found.shape[1], device=device) < leaves[part, None]
                parts.append(Gathered.listed((found | always) & within))
            columns.append(Gathered.joined(parts))
        asked, stored = (torch.arange(count, device=device).expand(heads, -1) for count in (t, view.count))
        table = Gathered.joined(columns).unflatten(0, (heads, -1))
        return Gathered(asked, stored, table, size, width)

    def plain(self, view: View) -> Where:
        """The same one block of queries and one block of keys at a time."""
        (heads, _, t, _), n, size, width = view.queries.shape, view.count, self.size, self.width
        seen = torch.zeros(heads, t, n, dtype=torch.bool)
        for h in range(heads):
            keys = view.keys[h].double().split(width)
            for i in range(-(-t // size)):
                query = view.queries[h, :, i * size : (i + 1) * size].double()
                start, end = n - t + i * size, n - t + min(t, (i + 1) * size) - 1

                def score(leaf: int, query: torch.Tensor = query, keys: tuple[torch.Tensor, ...] = keys) -> float:
                    return float((query @ keys[leaf].T).max())

                leaves = end // width + 1
                found = plain_descend(score, leaves, leaves, self.keep // width)
                read = [j for leaf in found for j in range(leaf * width, min(n, (leaf + 1) * width))]
                near = range(max(0, (start // size - self.local) * size), end + 1)
                seen[h, i * size : (i + 1) * size, [*read, *range(min(n, size)), *near]] = True
        return Blocks.from_map(1, seen)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """x [h, n, ...] in blocks, [h, blocks, size, ...]; the last token fills up the last block."""
    n = x.shape[1]
    place = torch.arange(-(-n // size) * size, device=x.device).clamp(max=n - 1)
    return x[:, place].unflatten(1, (-1, size))


def _maxima(queries: torch.Tensor, keys: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Largest product of each row's queries [rows, m, d] with the keys of its blocks `leaf [rows, k]` of
    keys [blocks, size, d]: [rows, k]."""
    products = queries @ keys[leaf].flatten(1, 2).mT
    return products.amax(1).unflatten(1, leaf.shape[1:] + keys.shape[1:2]).amax(2)
