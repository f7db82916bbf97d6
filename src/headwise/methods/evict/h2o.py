"""Heavy hitters: tokens that have gathered the most attention so far stay, next to the recent ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Share
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "h2o")
@dataclass(frozen=True)
class H2O(Evict):
    """Keeps the latest tokens in a part `local` of the budget, and the heaviest hitters in the rest.

    The local part scores +inf rather than being protected: it is spent out of the budget, and gives way in a layer
    whose count is smaller than the mean (pyramid).

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    local: share (0 to 1) of the budget spent on the most recent tokens.
    """

    local: Share = 0.5

    needs = frozenset({"mass"})
    card = Card(
        title="H2O: heavy-hitter oracle",
        paper="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs, arXiv 2306.14048",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="older tokens that past queries attended little; early tokens had more queries to gather mass from",
        deviations="one choice per KV head from the mass of its whole query group; sinks are protected; evicts at the "
        "end of a prompt chunk and every so many decode steps instead of at every token",
    )

    def score(self, view: View) -> torch.Tensor:
        """Accumulated attention mass [h, n]; +inf for the local tokens."""
        first_local = view.seen - round(self.local * self.amount.tokens_of(view.seen))
        return view.mass.float().masked_fill(view.positions >= first_local, torch.inf)

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        local = round(self.local * self.amount.tokens_of(view.seen))
        rows = [
            [float("inf") if view.seen - p <= local else m for p, m in zip(positions, mass, strict=True)]
            for positions, mass in zip(view.positions.tolist(), view.mass.tolist(), strict=True)
        ]
        return torch.tensor(rows)
