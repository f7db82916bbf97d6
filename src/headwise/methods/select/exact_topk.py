"""The oracle of selection: reads the tokens that the current queries really attend to most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Tokens
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "exact_topk")
@dataclass(frozen=True)
class ExactTopK(Select):
    """Computes all attention weights and reads the best; saves nothing, and bounds what any selector can reach.

    budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.
    """

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="Exact top-k (oracle)",
        paper="none: the upper bound of the selection papers",
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores the tokens its queries attend to least",
        deviations="one choice per KV head, by the mean over the query group",
    )

    def select(self, view: View) -> Tokens:
        """The stored tokens of largest attention weight, mean over the group and the step's queries."""
        return self.best(view, self.weights(view))

    def plain(self, view: View) -> Tokens:
        """The same with one softmax row at a time."""
        heads, group, last, _ = view.queries.shape
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        for h in range(heads):
            for g in range(group):
                for i in range(last):
                    logits = view.keys[h].double() @ view.queries[h, g, i].double() * view.scale
                    later = view.positions[h] > view.query_positions[i]
                    weights[h] += logits.masked_fill(later, -torch.inf).softmax(0) / (group * last)
        return self.best(view, weights)
