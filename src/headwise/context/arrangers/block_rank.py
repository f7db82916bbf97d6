"""BlockRank (Gupta et al. 2025, arXiv 2510.05396): documents are read without each other and ranked by attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from headwise.arrangers import ArrangerCard, register
from headwise.context.asked import Asked
from headwise.context.layout import Layout
from headwise.context.looks import span_shares, spans_of
from headwise.context.ranker import Ranker
from headwise.errors import HeadwiseError
from headwise.knobs import NonNegative

SIGNALS = 2  # last tokens of the prompt whose attention ranks
DEPTH = 0.625  # of the layers: the 20th of 32, as in the paper's code


@register("block_rank")
@dataclass(frozen=True)
class BlockRank(Ranker):
    """layer: whose attention ranks, counted from 1; 0: that at 5/8 of the depth. offset: position of the question; 0:
    right after the longest document. keep, best: see `Ranker`."""

    card = ArrangerCard(
        "Reads every document beside the instruction alone, all at the same positions, and ranks them by the attention "
        "of the last tokens in one layer, without writing a token",
        "Scalable In-context Ranking with Generative Models, 2510.05396, section 3",
        "one, whose pairs grow with the number of documents and not with its square",
        "the model is used as it is, without the paper's training, whose far position of the question (8192) it needs; "
        "documents have no numbers, by which an answer would name them; later layers are computed too",
        (312,),
        "the InfoNCE loss, the trained ranker and its decoded answer",
    )
    passes: ClassVar[int] = 1
    layer: NonNegative = 0
    offset: NonNegative = 0

    def scores(self, asked: Asked) -> Sequence[float]:
        shares = self.shares(asked)
        if self.layer > len(shares):
            raise HeadwiseError(f"{self}: the model has {len(shares)} layers that attend; give 1 to {len(shares)}")
        ranks = shares[(self.layer or round(DEPTH * len(shares))) - 1]
        found: list[float] = (ranks / ranks.sum(-1, keepdim=True)).mean((0, 1)).tolist()
        return found

    def shares(self, asked: Asked) -> torch.Tensor:
        """What the last tokens give to each document: [layers, query heads, tokens, documents]."""
        model, _ = asked.needs("block_rank")
        pieces = asked.tokens(asked.documents, asked.wording.asking_first())
        head, *documents, tail = (piece.shape[1] for piece in pieces)
        layout = Layout(head, tuple(documents), tail, self.offset)
        return span_shares(model, torch.cat(pieces, dim=1), spans_of(pieces)[1:-1], min(SIGNALS, tail), layout)
