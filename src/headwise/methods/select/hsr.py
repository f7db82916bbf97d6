"""Half-space reporting: reads every token whose score lies above a threshold, however many these are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Tokens
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "hsr")
@dataclass(frozen=True)
class HalfSpace(Select):
    """budget: share or number of tokens that would pass if scores were Gaussian: it sets the threshold, and what passes
    it is read. sinks, recent: tokens always read.
    """

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="HSR-enhanced sparse attention",
        paper="HSR-Enhanced Sparse Attention Acceleration, arXiv 2410.10165, section 4",
        systems=(190,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores tokens that score below the threshold",
        deviations="scores are compared one by one, without the half-space structure; the threshold is a Gaussian "
        "quantile of the step's own scores (the paper's sqrt(0.4 ln n) is that of n^(4/5) tokens); one choice per KV "
        "head, by the largest standing over its query group",
    )

    def select(self, view: View) -> Tokens:
        """The tokens beyond the threshold of any query."""
        queries = view.queries.float().flatten(1, 2)
        scores = queries @ view.keys.float().mT
        scores = (scores - scores.mean(-1, keepdim=True)) / scores.std(-1, correction=0, keepdim=True).clamp(min=1e-9)
        return self._beyond(view, scores.amax(1))

    def _beyond(self, view: View, standing: torch.Tensor) -> Tokens:
        """Entries whose standing (standard deviations above the mean), [h, n], is above the budget's quantile."""
        share = self.amount.tokens_of(view.count) / view.count
        threshold = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share, dtype=torch.float64)))
        always = self.protect(view)
        return Tokens(choose(standing, ((standing >= threshold) | always).sum(1), always))

    def plain(self, view: View) -> Tokens:
        """The same with one score at a time."""
        standing = torch.full(view.positions.shape, -torch.inf, dtype=torch.float64)
        for h, keys in enumerate(view.keys.double()):
            for query in view.queries[h].double().flatten(0, 1):
                scores = [float(query @ key) for key in keys]
                mean = sum(scores) / len(scores)
                spread = max(1e-9, math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)))
                own = torch.tensor([(s - mean) / spread for s in scores], dtype=torch.float64)
                standing[h] = torch.maximum(standing[h], own)
        return self._beyond(view, standing)
