"""Attention sinks plus the most recent tokens: the plainest eviction, and the control every other one has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.methods.evict import Latest
from headwise.registry import Card, register


@register("evict", "streaming")
@dataclass(frozen=True)
class Streaming(Latest):
    """Keeps the first `sinks` tokens and, of the rest, the latest that the budget holds.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    """

    card = Card(
        title="StreamingLLM: sinks and a recent window",
        paper="Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453",
        frees_memory=True,
        chunking="exact",
        forgets="everything between the sinks and the recent window",
        deviations="keys keep their true positions; the paper numbers the cached tokens anew at every step",
    )
