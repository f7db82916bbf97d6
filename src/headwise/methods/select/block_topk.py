"""Block top-k: reads the blocks whose mean key the query matches best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.byproducts import best_scores
from headwise.attention.view import View
from headwise.forms import Tokens
from headwise.knobs import Positive
from headwise.methods.select import Summarised
from headwise.registry import Card, register


@register("select", "block_topk")
@dataclass(frozen=True)
class BlockTopK(Summarised):
    """budget: share of the stored tokens or number of tokens read per step, in whole blocks. sinks, recent: tokens
    whose blocks are always read. size: tokens per block.
    """

    size: Positive = 16

    breaks_even = 16384
    needs = frozenset({"summaries", "queries"})
    card = Card(
        title="Kinetics: block top-k",
        paper="Kinetics: Rethinking Test-Time Scaling Laws, arXiv 2506.05333, section 4",
        systems=(11,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores blocks whose mean key scores low",
        deviations="one choice per KV head, by the largest score over the query group and the step's queries",
    )

    @property
    def summary_size(self) -> int:
        """A block."""
        return self.size

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """Mean keys [h, blocks, d] in the type of the keys."""
        return blocks.float().mean(2).to(blocks.dtype)

    def select(self, view: View) -> Tokens:
        """The tokens of the blocks with the best mean keys."""
        return self.best_blocks(view, best_scores(view.queries, view.summaries), self.size)

    def plain(self, view: View) -> Tokens:
        """The same with one block and one query at a time."""
        scores = torch.zeros(len(view.heads), -(-view.count // self.size), dtype=torch.float64)
        for h in range(len(view.heads)):
            for j in range(scores.shape[1]):
                mean = view.keys[h, j * self.size : (j + 1) * self.size].double().mean(0)
                scores[h, j] = max(float(q @ mean) for q in view.queries[h].double().flatten(0, 1))
        return self.best_blocks(view, scores, self.size)
