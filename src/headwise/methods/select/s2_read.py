"""New tokens read the local blocks and their head's shard, as S2-Attention's prompts do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.forms import Tokens
from headwise.knobs import NonNegative, Positive, Whole
from headwise.methods.select import Select
from headwise.methods.shards import Shards
from headwise.registry import Card, register


@register("select", "s2_read")
@dataclass(frozen=True)
class S2Read(Select):
    """budget: share of the stored tokens or number of tokens read per step, at most. sinks, recent: tokens always read.

    stride: a head reads one in so many distant blocks. local: blocks that all heads read, the query's own and those
    before it. step: shift from head to head. size: tokens per block.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1
    stride: Positive = 16
    local: Positive = 16
    step: Whole = 1
    size: Positive = 64

    needs = frozenset({"query_positions"})
    card = Card(
        title="S2-Attention: reading a shard",
        paper="Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads, "
        "arXiv 2407.17678",
        systems=(4,),
        phase="decode",
        forgets="nothing for good: a step ignores the distant blocks of other heads' shards",
        deviations="the model is used as it is, not trained with the pattern; several new tokens at once read what the "
        "first of them does; what is over the budget is not read, the oldest first",
    )

    @property
    def shards(self) -> Shards:
        """The pattern of its knobs."""
        return Shards(self.stride, self.local, self.step, self.size)

    def pays(self, stored: int) -> bool:
        """Also where the budget covers everything: it is the pattern that leaves tokens out."""
        return stored >= self.starts

    def select(self, view: View) -> Tokens:
        """The latest tokens of the shard that the budget covers, and those always read."""
        there, always = self.shards.reads(view, int(view.query_positions[0])), self.protect(view)
        rank = torch.where(there, view.positions.double(), -1.0)
        best = choose_mask(rank, self.amount.tokens_of(view.count), always) & there | always
        return Tokens([mask.nonzero()[:, 0] for mask in best])

    def plain(self, view: View) -> Tokens:
        """The same, token by token."""
        lists = []
        reads = self.shards.plain_reads(view, view.query_positions.tolist()[0])
        for own, places in zip(reads, view.positions.tolist(), strict=True):
            sure = [j for j, p in enumerate(places) if p < self.sinks or p >= view.seen - self.recent]
            room = max(0, self.amount.tokens_of(view.count) - len(sure))
            others = [j for j, read in enumerate(own) if read and j not in sure]
            lists.append(torch.tensor(sorted(sure + others[len(others) - min(room, len(others)) :]), dtype=torch.int64))
        return Tokens(lists)
