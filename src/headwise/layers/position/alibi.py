"""Scores that fall with the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Block, Position, Row


@layer_part("position", "alibi")
@dataclass(frozen=True)
class Alibi(Position):
    """From every score is taken its distance, times a slope of the head."""

    adds: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Attention with linear biases",
        "ALiBi, 2108.12409, section 3",
        "far keys are asked less, by a slope for each head",
        "s_ij = q_i . k_j - m_h (i - j), m_h = 2^(-8 h / heads)",
    )

    def bias(self, block: Block) -> Tensor:
        slopes = torch.tensor(alibi_slopes(block.q.shape[1]), device=block.distance.device)
        return -slopes[:, None, None] * block.distance.float()

    def alone(self, row: Row) -> Tensor:
        slope = alibi_slopes(row.heads)[row.head]
        return torch.tensor([-slope * far for far in row.distances], dtype=row.k.dtype)


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head: a geometric series for a power of two, between whose members the others lie."""
    power = 2 ** math.floor(math.log2(heads))
    series = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return series + between[: heads - power]
