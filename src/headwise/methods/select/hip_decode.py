"""HiP at decoding: new tokens find the best small blocks of keys by halving chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Tokens
from headwise.knobs import Positive
from headwise.methods.select import Select
from headwise.methods.tree import descend, plain_descend
from headwise.registry import Card, register


@register("select", "hip_decode")
@dataclass(frozen=True)
class HipDecode(Select):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    size: tokens per block that is found.
    """

    size: Positive = 2

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="HiP: hierarchically pruned decoding",
        paper="A Training-free Sub-quadratic Cost Transformer Model Serving Framework With Hierarchically Pruned "
        "Attention, arXiv 2406.09827",
        systems=(10,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores chunks whose middle block matches badly",
        deviations="one choice per KV head, by the largest score over the query group and the step's queries; sinks "
        "and recent tokens are read beside the budget",
    )

    def select(self, view: View) -> Tokens:
        """The tokens of the blocks that the search ends with, and those always read."""
        queries = view.queries.float().flatten(1, 2)
        leaves = -(-view.count // self.size)

        def score(leaf: torch.Tensor) -> torch.Tensor:
            entries = (leaf[..., None] * self.size + torch.arange(self.size, device=leaf.device)).flatten(1)
            index = entries.clamp(max=view.count - 1)[..., None].expand(-1, -1, view.keys.shape[2])
            products = queries @ view.keys.gather(1, index).float().mT
            return products.unflatten(2, (-1, self.size)).amax((1, 3))

        rows = torch.full((len(view.heads),), leaves, device=view.positions.device)
        found = descend(score, rows, self._chunks(view)).repeat_interleave(self.size, 1)[:, : view.count]
        return Tokens([one.nonzero()[:, 0] for one in found | self.protect(view)])

    def _chunks(self, view: View) -> int:
        return max(1, -(-self.amount.tokens_of(view.count) // self.size))

    def plain(self, view: View) -> Tokens:
        """The same one head and one block at a time."""
        leaves, lists = -(-view.count // self.size), []
        for h, always in enumerate(self.protect(view)):

            def score(leaf: int, h: int = h) -> float:
                block = view.keys[h, leaf * self.size : (leaf + 1) * self.size].double()
                return float((view.queries[h].double() @ block.T).max())

            for leaf in plain_descend(score, leaves, leaves, self._chunks(view)):
                always[leaf * self.size : (leaf + 1) * self.size] = True
            lists.append(always.nonzero()[:, 0])
        return Tokens(lists)
