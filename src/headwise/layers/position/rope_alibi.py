"""Rotation and a bias that falls with distance, both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Block, Row
from headwise.layers.position.rope import Rope


@layer_part("position", "rope_alibi")
@dataclass(frozen=True)
class RopeAlibi(Rope):
    """Queries and keys are turned, and from every score is taken its distance over the number of the head."""

    adds: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Rotary positions with linear biases",
        "The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI, 2410.18441, "
        "its third proposal",
        "scores depend on the distance, and far keys are asked less",
        "s_ij = q_i^T R(j - i) k_j - (i - j) / h, h = 1, 2, ... the head",
        systems=(45,),
        deviations="the slopes' harmonic series is the plainest, 1 / h, as the paper's numbers were not to be had; of "
        "row 45 the third proposal alone",
    )

    def bias(self, block: Block) -> Tensor:
        numbers = torch.arange(1, block.q.shape[1] + 1, device=block.q.device)
        return -block.distance.float() / numbers[:, None, None]

    def alone(self, row: Row) -> Tensor:
        return torch.tensor([-far / (row.head + 1) for far in row.distances], dtype=row.k.dtype)
