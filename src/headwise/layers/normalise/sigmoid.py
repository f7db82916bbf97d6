"""Sigmoid attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Block, Normalise, Row


@layer_part("normalise", "sigmoid")
@dataclass(frozen=True)
class Sigmoid(Normalise):
    """Every key has a weight of its own between 0 and 1.

    bias: what is taken from scores, the logarithm of how many keys a query sees, or nothing.
    """

    bias: Literal["seen", "none"] = "seen"
    card: ClassVar[LayerCard] = LayerCard(
        "Sigmoid attention",
        "Theory, Analysis, and Best Practices for Sigmoid Self-Attention, 2409.04431, section 3",
        "keys do not compete for weight",
        "w_ij = sigmoid(s_ij - log n_i), n_i the keys that query i sees",
        systems=(84,),
        deviations="the bias is that of the keys a query sees, where the paper and its code have the length that it "
        "trains at; of row 84 neither the GPU kernel nor LayerScale",
    )

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        taken = block.count.log() if self.bias == "seen" else 0.0
        return (scores - taken).sigmoid() * block.seen

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        return 1 / (1 + (len(scores) if self.bias == "seen" else 1) * (-scores).exp())
