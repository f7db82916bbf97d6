"""A softmax that is stretched and clipped, so that weights can be exactly 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import Factor, Weight
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.pairs import Block, Normalise, Row


@layer_part("normalise", "clipped_softmax")
@dataclass(frozen=True)
class ClippedSoftmax(Normalise):
    """Softmax, stretched to lie between -alpha/n and zeta, and clipped to [0, 1]: a head can do nothing at no cost.

    alpha: of the lower end, where n is how many keys a query sees. zeta: the upper end.
    """

    alpha: Weight = 2.0
    zeta: Factor = 1.0
    card: ClassVar[LayerCard] = LayerCard(
        "Clipped softmax",
        "Quantizable Transformers, 2306.12929, section 4.1",
        "weights below about alpha / n are 0",
        "w_ij = clip((zeta - gamma) softmax(s_i)_j + gamma, 0, 1), gamma = -alpha / n_i",
        systems=(108,),
        equals=(Limit("alpha = 0, zeta = 1: softmax", "softmax", of="clipped_softmax(alpha=0.0)"),),
        deviations="n is how many keys a query sees, where the paper has the length that it trains at; of row 108 "
        "neither outliers nor quantisation are measured",
    )

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        gamma = -self.alpha / block.count
        return ((self.zeta - gamma) * Softmax().weights(scores, block) + gamma).clamp(0, 1) * block.seen

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        low, soft = -self.alpha / len(scores), scores.exp() / scores.exp().sum()
        return ((self.zeta - low) * soft + low).clip(0, 1)
