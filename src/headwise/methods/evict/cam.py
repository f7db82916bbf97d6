"""What leaves is not lost: an evicted token's value is merged into the tokens that stay after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "cam")
@dataclass(frozen=True)
class CaM(Evict):
    """Evicts by accumulated attention, and adds each evicted value to the next `merge` kept ones, a part to each.

    The whole value is shared out where the token had as much attention as those that take it on average, else as large
    a part of it as its attention is of theirs: so that their attention carries what the token gave.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    merge: kept tokens that take in an evicted one; 0 merges nothing.
    """

    merge: NonNegative = 32

    needs = frozenset({"values", "mass"})
    card = Card(
        title="CaM: cache merging",
        paper="CaM: Cache Merging for Memory-efficient LLMs Inference, ICML 2024, PMLR 235:58840, algorithm 1",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="the keys of tokens that past queries attended little; of their values an average is left. Where a "
        "prompt leaves at once that is measured to be worse than nothing: merge=0, or budgets for the generated tokens",
        deviations="merges by the expectation where the paper draws whether to merge (the same probability); merges at "
        "every eviction, prompts included, not at every token; one eviction rule, accumulated attention",
    )

    @property
    def not_of_latents(self) -> str | None:
        """Merged values would be other keys."""
        return "merges evicted values into others, which changes their keys; give merge=0" if self.merge else None

    def score(self, view: View) -> torch.Tensor:
        """Accumulated attention mass [h, n]."""
        return view.mass.float()

    def merged(self, view: View, stays: torch.Tensor) -> torch.Tensor | None:
        """Values [h, n, e] of the tokens that stay, with what they take in."""
        if not self.merge:
            return None
        heads = zip(view.values.float(), view.mass.float(), stays, strict=True)
        return torch.stack([self._merged(values, mass, kept) for values, mass, kept in heads]).to(view.values.dtype)

    def _merged(self, values: torch.Tensor, mass: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """One head: values [n, e], mass [n], kept bool [n]."""
        places, gone = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        before = kept.long().cumsum(0)[gone]  # kept tokens before each evicted one
        takers = (len(places) - before).clamp(max=self.merge)  # those after it, at most `merge`
        reached = torch.cat((mass.new_zeros(1), mass[places].cumsum(0)))
        average = (reached[before + takers] - reached[before]) / takers.clamp(min=1)
        part = (mass[gone] / average.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1) / takers.clamp(min=1)
        new = values.clone()
        for step in range(min(self.merge, len(places))):
            there = step < takers
            new.index_add_(0, places[(before + step)[there]], (part[:, None] * values[gone])[there])
        return new

    def plain(self, view: View) -> torch.Tensor:
        """The mass, token by token."""
        return torch.tensor([list(row) for row in view.mass.tolist()])
