"""Stretches of text stay as wholes where all of their tokens matter, and else the best of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median_low

import torch

from headwise.attention.view import View
from headwise.knobs import BlockSize, Positive
from headwise.methods.evict import Evict
from headwise.methods.voted import plain_voted, voted
from headwise.registry import Card, register

LEAST = 1e-8  # beside votes, so that none has no logarithm


@register("evict", "entropy_chunk_kv")
@dataclass(frozen=True)
class EntropyChunkKV(Evict):
    """ChunkKV, but of a good chunk whose votes lie on few tokens only the best `few` stay with it; what that saves goes
    to further chunks, and then to the best of the tokens left out.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that vote, in tokens; their own tokens count as fully attended to. size: tokens of a chunk.
    few: tokens that stay of a chunk whose votes are on few.
    """

    window: Positive = 32
    size: BlockSize = 10
    few: Positive = 4

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="EntropyGatedChunkKV",
        paper="none: of NVIDIA's kvpress, after ChunkKV, arXiv 2502.00299",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="chunks that the last queries did not attend to, and of chunks with few good tokens all others",
        deviations="a chunk of one token counts as even in kvpress's sense of 0; heads that hold different numbers of "
        "tokens (under ada) choose apart",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def score(self, view: View) -> torch.Tensor:
        """By rank [h, n]: the chunks in the order of their means, of each the best tokens first; below all of these the
        tokens left out, by their votes."""
        votes, held = voted(view, self.window, self.size)
        count, total = held.sum(1), votes.sum(1)
        means = torch.where(count > 0, total / count.clamp(min=1), -1.0)
        share = votes / (total[:, None] + LEAST)
        entropy = -(share * (share + LEAST).log()).sum(1) / count.clamp(min=2).log()
        good = means >= means[count > 0].median()
        spiky = good & (entropy < entropy[count > 0].median())
        better = torch.stack([(own > own[:, None]).sum(1) for own in votes])
        worse = (means[:, None] > means).sum(1)[:, None]
        ranks = 2 + worse - (better + 1) / (self.size + 1)
        score = torch.where(spiky[:, None] & (better >= self.few), votes, ranks) + 0 * votes  # no number stays none
        return score.flatten()[view.positions.long()]

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        chunks = plain_voted(view, self.window, self.size)
        means = {chunk: sum(own.values()) / len(own) for chunk, own in chunks.items()}
        spread = {chunk: _entropy(list(own.values())) for chunk, own in chunks.items()}
        middle, between = median_low(means.values()), median_low(spread.values())
        gone = -(-view.seen // self.size) - len(chunks)  # chunks of which nothing is held
        score = {}
        for chunk, own in chunks.items():
            spiky = means[chunk] >= middle and spread[chunk] < between
            worse = gone + sum(mean < means[chunk] for mean in means.values())
            for place, vote in own.items():
                better = sum(other > vote for other in own.values())
                rank = 2 + worse - (better + 1) / (self.size + 1)
                score[place] = vote if spiky and better >= self.few else rank
        return torch.tensor([[score[place] for place in row] for row in view.positions.tolist()], dtype=torch.float64)


def _entropy(votes: list[float]) -> float:
    """Of the shares of a chunk's votes, 1 where all are alike."""
    shares = [vote / (sum(votes) + LEAST) for vote in votes]
    return -sum(x * math.log(x + LEAST) for x in shares) / math.log(max(2, len(votes)))
