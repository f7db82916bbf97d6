"""Half-space reporting: reads every token whose score lies above a threshold, however many these are."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.attention.view import View
from headwise.forms import Tokens
from headwise.methods.half_space import HalfSpaced
from headwise.registry import Card, register


@register("select", "hsr")
@dataclass(frozen=True)
class HalfSpace(HalfSpaced):
    """budget: share or number of tokens that would pass if scores were Gaussian: it sets the threshold, and what passes
    it is read. sinks, recent: tokens always read.
    """

    needs = frozenset({"keys", "queries", "memory"})
    card = Card(
        title="HSR-enhanced sparse attention, softmax",
        paper="HSR-Enhanced Sparse Attention Acceleration, arXiv 2410.10165, section 5",
        systems=(190,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores tokens that score below the threshold",
        deviations="the half-space structure is a ball tree: exact, but on keys of many channels it leaves most leaves "
        "to be compared key by key, where the paper's has a bound in theory; the threshold is the budget's Gaussian "
        "quantile by the keys' mean and covariance (the paper's sqrt(0.4 ln n) is that of n^(4/5) tokens); a KV head "
        "reads what any of its query group asks for",
    )

    def select(self, view: View) -> Tokens:
        """The tokens beyond the threshold of any query, and those always read."""
        return Tokens(self.reported(view))

    def plain(self, view: View) -> Tokens:
        """The same with one key at a time and no tree."""
        return Tokens(self.plain_reported(view))
