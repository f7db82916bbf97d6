"""A head keeps its shard of the distant context and the local blocks: all that S2-Attention lets it read again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative, Positive, Whole
from headwise.methods.evict import Evict
from headwise.methods.shards import Shards
from headwise.registry import Card, register


@register("evict", "s2_keep")
@dataclass(frozen=True)
class S2Keep(Evict):
    """After a prompt read by `s2` and with new tokens read by `s2_read`, all of equal knobs, decoding from what is left
    is the masked pass over everything.

    budget: share of the tokens per KV head, at most, as the largest shard is often less; or number of tokens, filled up
    with the latest beside the shard. sinks, recent: tokens always kept. stride: a head keeps one in so many distant
    blocks. local: blocks that all heads keep, the newest token's own and those before it. step: shift from head to
    head. size: tokens per block.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1
    stride: Positive = 16
    local: Positive = 16
    step: Whole = 1
    size: Positive = 64

    card = Card(
        title="S2-Attention: the sharded cache",
        paper="Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads, "
        "arXiv 2407.17678",
        systems=(4,),
        frees_memory=True,
        chunking="approximate",
        forgets="distant blocks that are not in the head's own shard",
        deviations="the model is used as it is, not trained with the pattern; evicts every 64 decode steps, so read by "
        "s2_read; what is over a smaller budget leaves, the oldest first",
    )

    @property
    def shards(self) -> Shards:
        """The pattern of its knobs."""
        return Shards(self.stride, self.local, self.step, self.size)

    def tokens_of(self, seen: int) -> int:
        """What the budget means; of a share, what the largest shard holds at most."""
        asked = super().tokens_of(seen)
        return min(asked, self.shards.most(seen)) if self.amount.share else asked

    def score(self, view: View) -> torch.Tensor:
        """The position [h, n] of what the next query reads, above 0; below 0 for the rest, the latest highest."""
        places = view.positions.double()
        return torch.where(self.shards.reads(view, view.seen), places + 1, places - view.seen)

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        reads = self.shards.plain_reads(view, view.seen)
        both = zip(view.positions.tolist(), reads, strict=True)
        return torch.tensor(
            [[p + 1.0 if read else float(p - view.seen) for p, read in zip(*own, strict=True)] for own in both],
            dtype=torch.float64,
        )
