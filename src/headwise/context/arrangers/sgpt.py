"""SGPT (Muennighoff 2022, arXiv 2202.08904): a decoder as its own retriever, by means of its states that count later
tokens more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from headwise.arrangers import ArrangerCard, register
from headwise.context.asked import Asked
from headwise.context.ranker import Ranker
from headwise.context.states import Pool, layer_vectors


@register("sgpt")
@dataclass(frozen=True)
class Sgpt(Ranker):
    """Ranks by the cosine of the last layer's states. pool: how the tokens of a text become one vector; the i-th of n
    counts i under `weighted_mean`. keep, best: see `Ranker`."""

    card = ArrangerCard(
        "The documents whose states in the model itself are nearest to the question's, later tokens counting more",
        "SGPT: GPT Sentence Embeddings for Semantic Search, 2202.08904, its symmetric bi-encoder, and its code",
        "one, over all documents and the question side by side, each read by itself",
        "the model is used as it is: biases are not trained, and texts stand in no brackets that tell questions from "
        "documents",
        (227,),
        "training by contrast on biases alone, which the experiment `biases_alone` does to a small decoder",
    )
    passes: ClassVar[int] = 1
    pool: Pool = "weighted_mean"

    def scores(self, asked: Asked) -> Sequence[float]:
        model, tokenizer = asked.needs("sgpt")
        vectors = layer_vectors(model, tokenizer, [*asked.documents, asked.question], [self.pool])[0, :, -1]
        *documents, question = torch.nn.functional.normalize(vectors, dim=-1)
        return [float(one @ question) for one in documents]
