"""The score of the first attention: a network with tanh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.networks import PairNetwork


@layer_part("score", "additive")
@dataclass(frozen=True)
class Additive(PairNetwork):
    """A network with tanh, a head's own, reads query and key together: Luong's `concat`, and what a pointer network
    points by."""

    card: ClassVar[LayerCard] = LayerCard(
        "Additive score",
        "Neural Machine Translation by Jointly Learning to Align and Translate, 1409.0473, appendix A.1.2; Pointer "
        "Networks, 1506.03134, equation 3; Luong's `concat`, 1508.04025, section 3.1",
        "what a query asks need not be a product",
        "s_ij = w_h . tanh(A_h q_i + B_h k_j + b_h)",
        systems=(22, 214),
        deviations="a head's own, with a bias, between tokens of one text; of row 22 the score and its weights alone "
        "(`Attend.weights`), without the pointing model; of row 214 neither local attention nor input feeding",
    )

    def act(self, x: Tensor) -> Tensor:
        return x.tanh()
