"""Top-p: as few tokens as hold a share of the attention, so that each head and step reads what it needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose, enough
from headwise.forms import Tokens
from headwise.knobs import PositiveShare
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "top_p")
@dataclass(frozen=True)
class TopP(Select):
    """budget: most tokens read per step, as a share of those stored or a number. sinks, recent: tokens always read.

    mass: share of the attention that the tokens read must hold, where the budget allows it.
    """

    mass: PositiveShare = 1.0

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="Top-p selection (oracle)",
        paper="Twilight: Adaptive Attention Sparsity with Hierarchical Top-p Pruning, arXiv 2502.02770, section 4; "
        "FlexPrefill's budget (2502.20766) at decoding",
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores the tokens beyond the share of attention",
        deviations="exact weights, so it saves no reading of keys: it shows what an adaptive budget can reach; one "
        "choice per KV head, by the mean over the query group",
    )

    def select(self, view: View) -> Tokens:
        """The fewest tokens that hold the mass, mean over the group and the step's queries."""
        return self._fewest(view, self.weights(view))

    def pays(self, stored: int) -> bool:
        """Also with a budget of everything, which the mass leaves unused."""
        return stored >= self.starts

    def _fewest(self, view: View, weights: torch.Tensor) -> Tokens:
        always = self.protect(view)
        count = enough(weights, self.mass, always).clamp(max=self.amount.tokens_of(view.count))
        return Tokens(choose(weights, count, always))

    def plain(self, view: View) -> Tokens:
        """The same with one softmax row at a time."""
        heads, group, t, _ = view.queries.shape
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        for h in range(heads):
            for g in range(group):
                for i in range(t):
                    scores = view.keys[h].double() @ view.queries[h, g, i].double() * view.scale
                    later = view.positions[h] > view.query_positions[i]
                    weights[h] += scores.masked_fill(later, -torch.inf).softmax(0) / (group * t)
        return self._fewest(view, weights)
