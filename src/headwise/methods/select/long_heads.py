"""LongHeads: every head reads the first chunk, the latest, and those whose summary key it matches best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.byproducts import best_scores
from headwise.attention.view import View
from headwise.forms import Tokens
from headwise.knobs import NonNegative, Positive
from headwise.methods.repositioned import Repositioned
from headwise.methods.select import Summarised
from headwise.registry import Card, register


@register("select", "long_heads")
@dataclass(frozen=True)
class LongHeads(Repositioned, Summarised):
    """budget: share of the stored tokens or number of tokens read per step, in whole chunks. sinks, recent: tokens
    whose chunks are always read. size: tokens per chunk.
    """

    sinks: NonNegative = 1
    recent: NonNegative = 256
    size: Positive = 256

    breaks_even = 8192
    needs = frozenset({"summaries", "queries"})
    card = Card(
        title="LongHeads",
        paper="LongHeads: Multi-Head Attention is Secretly a Long Context Processor, arXiv 2402.10685, section 3.2",
        systems=(100,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores chunks whose summary scores low",
        deviations="keys stand for the queries of the chunk's own attention, as past queries are not stored; one "
        "choice per KV head and step (with positions='compact' per chunk of a prompt too), by the largest score over "
        "the queries; without that policy tokens keep their positions and prompts are read densely",
    )

    @property
    def summary_size(self) -> int:
        """A chunk."""
        return self.size

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """What the mean output of each chunk's attention over its own keys reads of them: [h, chunks, d]."""
        keys = blocks.float()
        local = (keys @ keys.mT * view.scale).softmax(-1) @ keys
        return ((local.mean(2, keepdim=True) @ keys.mT * view.scale).softmax(-1) @ keys)[:, :, 0]

    def select(self, view: View) -> Tokens:
        """The tokens of the chunks with the best summary keys."""
        summaries = view.summaries
        if self.repositions and view.rope is not None:  # queries before rotation, keys rotated within their chunk
            starts = view.positions[:, :: self.size][:, : summaries.shape[1]]
            summaries = view.rope.unrotate(summaries, starts)
        return self.best_blocks(view, best_scores(self.bare(view).queries, summaries), self.size)

    def span(self, past: int) -> int:
        """As for others; always read are whole chunks."""
        always = (-(-self.sinks // self.size) + -(-self.recent // self.size) + 1) * self.size
        return max(super().span(past), min(past, always))

    def plain(self, view: View) -> Tokens:
        """The same with one chunk and one query at a time."""
        queries = self.bare(view).queries
        scores = torch.zeros(len(view.heads), -(-view.count // self.size), dtype=torch.float64)
        for h in range(len(view.heads)):
            for j in range(scores.shape[1]):
                keys = view.keys[h, j * self.size : (j + 1) * self.size]
                if self.repositions and view.rope is not None:
                    keys = view.rope.unrotate(keys, view.positions[h, j * self.size].expand(len(keys)))
                keys = keys.double()
                outputs = [(keys @ key * view.scale).softmax(0) @ keys for key in keys]
                summary = (keys @ torch.stack(outputs).mean(0) * view.scale).softmax(0) @ keys
                scores[h, j] = max(float(q @ summary) for q in queries[h].double().flatten(0, 1))
        return self.best_blocks(view, scores, self.size)
