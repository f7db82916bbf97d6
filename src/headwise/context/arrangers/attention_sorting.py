"""Attention Sorting (Peysakhovich and Lerer 2023, arXiv 2310.01427, section 4): what is attended to most comes last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.context.asked import Arranged, Asked
from headwise.context.looks import span_shares, spans_of


@register("attention_sorting")
@dataclass(frozen=True)
class AttentionSorting(Arranger):
    """rounds: times that the documents are looked at and sorted at most; it ends where an order is its own result."""

    card = ArrangerCard(
        "Looks at what the last token attends to and puts the documents in that order, the most attended last; again "
        "until nothing moves",
        "Attention Sorting Combats Recency Bias In Long Context Language Models, 2310.01427, section 4",
        "one a round",
        "there is no official code; a document's attention is that of all its tokens together, of the last token of "
        "the prompt, which writes the first of the answer; documents have no numbers, and rounds end early where "
        "nothing moves",
        (182,),
    )
    rounds: Annotated[int, Ge(1), Le(20)] = 5

    def arrange(self, asked: Asked) -> Arranged:
        order, first, done = list(range(len(asked.documents))), dict[int, float](), 0
        for done in range(1, self.rounds + 1):  # noqa: B007 (how many rounds it took is told)
            shares = document_shares(asked, [asked.documents[place] for place in order])
            scores = dict(zip(order, shares.tolist(), strict=True))
            first = first or scores
            moved = sorted(order, key=scores.__getitem__)
            if moved == order:
                break
            order = moved
        return asked.arranged(order, first, done)


def document_shares(asked: Asked, documents: Sequence[str]) -> torch.Tensor:
    """The share of the last token's attention that each document gets, the mean of layers and heads: [documents]."""
    model, _ = asked.needs("attention_sorting")
    pieces = asked.tokens(documents)
    return span_shares(model, torch.cat(pieces, dim=1), spans_of(pieces)[1:-1]).mean((0, 1, 2))
