"""The scaled product of query and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Block, Row, Score


@layer_part("score", "dot")
@dataclass(frozen=True)
class Dot(Score):
    """The product of query and key, scaled."""

    card: ClassVar[LayerCard] = LayerCard(
        "Scaled dot product",
        "Attention Is All You Need, 1706.03762, section 3.2.1",
        "nothing",
        "s_ij = q_i . k_j / sqrt(d)",
    )

    def scores(self, block: Block) -> Tensor:
        return block.products

    def alone(self, k: Tensor, row: Row) -> Tensor:
        return (row.q * k).sum() * row.scale
