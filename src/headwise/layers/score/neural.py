"""A small network of query and key in the place of their product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.networks import PairNetwork


@layer_part("score", "neural")
@dataclass(frozen=True)
class Neural(PairNetwork):
    """A network with ReLU, a head's own, reads query and key together."""

    card: ClassVar[LayerCard] = LayerCard(
        "Neural attention",
        "Neural Attention, 2502.17206, section 3",
        "what a query asks need not be a product",
        "s_ij = w_h . relu(A_h q_i + B_h k_j + b_h)",
        systems=(178,),
        deviations="without the projection down before its hidden layer, whose width is a head's by default; of row "
        "178 no language model is trained",
    )

    def act(self, x: Tensor) -> Tensor:
        return x.relu()
