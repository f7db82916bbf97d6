"""Pages by upper bound: from each page's smallest and largest key elements, how high can a score inside it be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.byproducts import page_scores
from headwise.attention.view import View
from headwise.forms import Causal, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.select import Summarised
from headwise.registry import Card, register


@register("select", "quest")
@dataclass(frozen=True)
class Quest(Summarised):
    """Reads the pages whose upper bound on q.k is largest; keys are touched only in the pages that are read.

    budget: share of the stored tokens or number of tokens read per step, in whole pages. sinks, recent: tokens whose
    pages are always read. skip_layers: first layers that read everything (their attention is not sparse). size: tokens
    per page.
    """

    skip_layers: NonNegative = 2
    size: Positive = 16

    breaks_even = 16384
    needs = frozenset({"summaries", "queries"})
    card = Card(
        title="Quest",
        paper="Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, arXiv 2406.10774",
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores the pages that score low",
        deviations="one choice per KV head, by the largest bound over the query group and the step's queries, where "
        "the paper chooses per query head; pages of sinks and recent tokens are always read",
    )

    @property
    def summary_size(self) -> int:
        """A page."""
        return self.size

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """Least and greatest key of each page, by channel: [h, pages, 2, d]."""
        return torch.stack((blocks.amin(2), blocks.amax(2)), dim=2)

    def select(self, view: View) -> Where:
        """The stored tokens of the pages with the largest bounds."""
        if view.layer < self.skip_layers:
            return Causal()
        bounds = page_scores(view.queries, view.summaries)
        return self.best_blocks(view, bounds, self.size)

    def plain(self, view: View) -> Where:
        """The same with the bound of one page and one query at a time."""
        if view.layer < self.skip_layers:
            return Causal()
        bounds = torch.zeros(len(view.heads), -(-view.count // self.size), dtype=torch.float64)
        for h, queries in enumerate(view.queries.double()):
            for page, keys in enumerate(view.keys[h].double().split(self.size)):
                low, high = keys.amin(0), keys.amax(0)
                bounds[h, page] = max(torch.maximum(q * low, q * high).sum() for q in queries.flatten(0, 1))
        return self.best_blocks(view, bounds, self.size)
