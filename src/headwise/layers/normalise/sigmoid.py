"""Sigmoid attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Normalise


@layer_part("normalise", "sigmoid")
@dataclass(frozen=True)
class Sigmoid(Normalise):
    """Every key has a weight of its own between 0 and 1, less the logarithm of how many a query sees."""

    card: ClassVar[LayerCard] = LayerCard(
        "Sigmoid attention",
        "Theory, Analysis, and Best Practices for Sigmoid Self-Attention, 2409.04431, section 3",
        "keys do not compete for weight",
        "w_ij = sigmoid(s_ij - log n_i), n_i the keys that query i sees",
        deviations="the bias is that of the keys a query sees, where the paper has the length that it trains at",
    )

    def weights(self, scores: Tensor, seen: Tensor) -> Tensor:
        count = seen.sum(-1, keepdim=True).to(scores.dtype)
        return (scores - count.log()).sigmoid() * seen

    def alone(self, scores: Tensor) -> Tensor:
        return 1 / (1 + len(scores) * (-scores).exp())
