"""Scores that grow with the logarithm of how many keys there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Row, Score


@layer_part("score", "ssmax")
@dataclass(frozen=True)
class Ssmax(Score):
    """The product of query and key times a learned number a head and the logarithm of how many keys are seen, so that
    a softmax over more of them is not flatter."""

    card: ClassVar[LayerCard] = LayerCard(
        "Scalable softmax",
        "Scalable-Softmax Is Superior for Attention, 2501.19399, section 2; as BAM, 2505.22842, has it",
        "weights do not flatten as texts grow",
        "s_ij = a_h log(n_i) q_i . k_j / sqrt(d)",
        systems=(184,),
        deviations="without the paper's optional added number; a position's bias is not multiplied, as in BAM's code",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"ssmax_scale": torch.full((shape.heads,), 0.4)}

    def scores(self, block: Block) -> Tensor:
        return block.products * block.of_heads("ssmax_scale") * block.count.log()

    def alone(self, k: Tensor, row: Row) -> Tensor:
        return row.learned["ssmax_scale"] * math.log(len(row.k)) * (row.q @ k) * row.scale
