"""A temperature for each head, to be found when everything else is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Row, Score


@layer_part("score", "head_scale")
@dataclass(frozen=True)
class HeadScale(Score):
    """The scaled product of query and key, times a learned number a head. A model without positions reads longer texts
    when these numbers alone are trained on some."""

    card: ClassVar[LayerCard] = LayerCard(
        "HeadScale of models without positions",
        "Length Generalization of Causal Transformers without Position Encoding, 2404.12224, section 4.2",
        "each head looks as sharply as longer texts need",
        "s_ij = a_h q_i . k_j / sqrt(d)",
        systems=(203,),
        equals=(
            Limit(
                "numbers of 1: plain attention",
                "dot",
                lambda s: s.with_learned(head_scale=torch.ones_like(s.learned["head_scale"])),
            ),
        ),
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"head_scale": torch.ones(shape.heads)}

    def scores(self, block: Block) -> Tensor:
        return block.products * block.of_heads("head_scale")

    def alone(self, k: Tensor, row: Row) -> Tensor:
        return row.learned["head_scale"] * (row.q * k).sum() * row.scale
