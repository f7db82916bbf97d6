"""A softmax with a learned logit a head that no value belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import Weight
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Normalise, Row


@layer_part("normalise", "sink_softmax")
@dataclass(frozen=True)
class SinkSoftmax(Normalise):
    """Weights sum to less than 1: a sink, one learned logit a head, takes the rest.

    first: the logit that training begins with.
    """

    first: Weight = 0.0
    card: ClassVar[LayerCard] = LayerCard(
        "Softmax with a sink",
        "Efficient Streaming Language Models with Attention Sinks, 2309.17453, section 3.3, its zero sink; learned as "
        "in gpt-oss, 2508.10925",
        "a head can look at nothing",
        "w_ij = exp(s_ij) / (exp(b_h) + sum_j exp(s_ij))",
        equals=(
            Limit(
                "a sink of very low logit: softmax",
                "softmax",
                lambda s: s.with_learned(sink=torch.full_like(s.learned["sink"], -1e4)),
            ),
        ),
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"sink": torch.full((shape.heads,), self.first)}

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        hidden = scores.masked_fill(~block.seen, float("-inf"))
        sink = block.of_heads("sink").to(hidden.dtype).expand(*hidden.shape[:3], 1)
        return torch.cat((hidden, sink), dim=-1).softmax(-1)[..., :-1]

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        top = torch.maximum(scores.max(), row.learned["sink"])
        return (scores - top).exp() / ((scores - top).exp().sum() + (row.learned["sink"] - top).exp())
