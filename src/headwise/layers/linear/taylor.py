"""Linear attention whose weights are the exponential's second-order Taylor polynomial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.mapped import Mapped, polynomial


@layer_part("mix", "taylor")
@dataclass(frozen=True)
class Taylor(Mapped):
    """The softmax's exponential, up to its second order, on queries and keys of few channels.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "heads(key_dim=16)"
    card: ClassVar[LayerCard] = LayerCard(
        "Based's linear attention",
        "Simple linear attention language models balance the recall-throughput tradeoff, 2402.18668, section 4.1",
        "weights are 1 + s + s^2/2 in place of exp(s), so that one memory a head stands for all keys",
        "o_i = sum_j (1 + s_ij + s_ij^2 / 2) v_j / sum_j (1 + s_ij + s_ij^2 / 2), s_ij = q_i . k_j / sqrt(d)",
        systems=(46,),
        state="constant",
        deviations="of row 46 linear attention alone: windows are `local` in other layers, convolutions `short_conv`",
    )

    def features(self, x: Tensor, scale: float) -> Tensor:
        return polynomial(x * scale**0.5, order=2)

    def kernel(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        score = (q * k).sum() * scale
        return 1 + score + score.square() / 2
