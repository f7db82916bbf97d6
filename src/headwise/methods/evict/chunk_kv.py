"""Stretches of text stay or leave as wholes: a word without its sentence tells little."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import BlockSize, Positive
from headwise.methods.evict import Evict
from headwise.methods.voted import plain_voted, voted
from headwise.registry import Card, register


@register("evict", "chunk_kv")
@dataclass(frozen=True)
class ChunkKV(Evict):
    """The mean attention of the last `window` queries to each chunk of the text, over all heads of the layer.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that vote, in tokens; their own tokens count as fully attended to. size: tokens of a chunk.
    """

    window: Positive = 32
    size: BlockSize = 20

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="ChunkKV",
        paper="ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference, arXiv "
        "2502.00299",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="chunks of the prompt that the last queries did not attend to",
        deviations="of the chunk that the budget cuts the latest tokens stay, where the paper rounds down to whole "
        "ones; every layer chooses for itself: the reuse of a layer's choice in the next, which saves time, is absent; "
        "heads that hold different numbers of tokens (under ada) choose apart",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def score(self, view: View) -> torch.Tensor:
        """The mean vote [h, n] of each token's chunk."""
        votes, held = voted(view, self.window, self.size)
        means = votes.sum(1) / held.sum(1).clamp(min=1)
        return means[view.positions.long() // self.size]

    def plain(self, view: View) -> torch.Tensor:
        """The same, chunk by chunk."""
        chunks = plain_voted(view, self.window, self.size)
        means = {chunk: sum(own.values()) / len(own) for chunk, own in chunks.items()}
        rows = [[means[place // self.size] for place in row] for row in view.positions.tolist()]
        return torch.tensor(rows, dtype=torch.float64)
