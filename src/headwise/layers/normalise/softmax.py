"""The softmax of plain attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Block, Normalise, Row


@layer_part("normalise", "softmax")
@dataclass(frozen=True)
class Softmax(Normalise):
    """Weights are positive and sum to 1."""

    card: ClassVar[LayerCard] = LayerCard(
        "Softmax",
        "Attention Is All You Need, 1706.03762, section 3.2.1",
        "nothing",
        "w_ij = exp(s_ij) / sum_j exp(s_ij)",
    )

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        return scores.masked_fill(~block.seen, float("-inf")).softmax(-1)

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        risen = (scores - scores.max()).exp()
        return risen / risen.sum()
