"""The last queries vote: what the end of the prompt attends to is what the answer will need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Odd, Positive
from headwise.methods.evict import Evict
from headwise.methods.window_votes import plain_window_votes, window_votes
from headwise.registry import Card, register


@register("evict", "snapkv")
@dataclass(frozen=True)
class SnapKV(Evict):
    """The attention of the last `window` queries, smoothed along the tokens, averaged over the query group.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that vote, in tokens; their own tokens stay. In a prompt no longer than that all vote, and the
    latest tokens stay. kernel: tokens that the smoothing averages, odd; of an answer whose first token alone is looked
    at, half as many stay with it, so that a number written digit by digit wants 15 (`headwise claims 166`).
    """

    window: Positive = 32
    kernel: Odd = 5

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="SnapKV",
        paper="SnapKV: LLM Knows What You are Looking for Before Generation, arXiv 2404.14469",
        systems=(166,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="prompt tokens that the last queries did not attend to; a later question may need them",
        deviations="sinks are protected; one choice per KV head (the mean over its queries) where the paper's code "
        "repeats keys and chooses per query head; mean pooling, as in the paper's listing (its benchmarks used maximum "
        "pooling with kernel 7); after earlier evictions neighbours are neighbours in the cache, not in the text",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def score(self, view: View) -> torch.Tensor:
        """Smoothed votes [h, n]; +inf for the voters' own tokens."""
        return window_votes(view, self.window, self.kernel)

    def plain(self, view: View) -> torch.Tensor:
        """The same, one softmax row at a time."""
        return plain_window_votes(view, self.window, self.kernel)
