"""SparQ: scores from the channels where this very query is largest, exact attention on the best tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Tokens
from headwise.knobs import PositiveShare
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "sparq")
@dataclass(frozen=True)
class SparQ(Select):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    channels: share of the key's channels that scores are computed from.
    """

    channels: PositiveShare = 0.25

    needs = frozenset({"keys", "queries", "query_positions"})
    card = Card(
        title="SparQ",
        paper="SparQ Attention: Bandwidth-Efficient LLM Inference, arXiv 2312.04985, algorithm 1",
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores tokens that score low in the query's largest channels",
        deviations="channels and tokens are chosen once per KV head, by its query group and the step's queries; the "
        "tokens left out are not replaced by the mean value vector",
    )

    def select(self, view: View) -> Tokens:
        """The tokens of largest weight by the query's largest channels, at the paper's temperature."""
        strength = view.queries.float().abs().sum((1, 2))
        wanted = max(1, round(self.channels * strength.shape[1]))
        channels = torch.stack(choose(strength, wanted, torch.zeros_like(strength, dtype=torch.bool)))
        keys = view.keys.gather(2, channels[:, None].expand(-1, view.count, -1)).float()
        queries = view.queries.gather(3, channels[:, None, None].expand(*view.queries.shape[:3], -1)).float()
        kept = queries.abs().sum(-1, keepdim=True) / view.queries.float().abs().sum(-1, keepdim=True).clamp(min=1e-9)
        scores = torch.einsum("hgtr,hnr->hgtn", queries / kept.clamp(min=1e-9).sqrt(), keys) * view.scale
        later = view.positions[:, None] > view.query_positions[:, None]
        return self.best(view, scores.masked_fill(later[:, None], -torch.inf).softmax(-1).mean((1, 2)))

    def plain(self, view: View) -> Tokens:
        """The same with one softmax row at a time."""
        heads, group, t, d = view.queries.shape
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        for h in range(heads):
            strength = view.queries[h].double().abs().sum((0, 1)).tolist()
            best = sorted(range(d), key=lambda c: -strength[c])[: max(1, round(self.channels * d))]
            for g in range(group):
                for i in range(t):
                    query = view.queries[h, g, i].double()
                    temperature = (query[best].abs().sum() / query.abs().sum()).sqrt()
                    scores = view.keys[h][:, best].double() @ query[best] * view.scale / temperature
                    later = view.positions[h] > view.query_positions[i]
                    weights[h] += scores.masked_fill(later, -torch.inf).softmax(0) / (group * t)
        return self.best(view, weights)
