"""Queries and keys of one length, and a learned scale a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.norms import EPS, rms
from headwise.layers.pairs import Block, Row, Score


@layer_part("score", "qk_norm")
@dataclass(frozen=True)
class QkNorm(Score):
    """The product of query and key, each divided by its root mean square."""

    card: ClassVar[LayerCard] = LayerCard(
        "Normed queries and keys",
        "Query-Key Normalization for Transformers, 2010.04245, section 2; with RMS norms as in 2302.05442",
        "no score is larger than the learned scale allows",
        "s_ij = g_h rms(q_i) . rms(k_j) / sqrt(d)",
        deviations="one learned scale a head, and not one for each channel",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"qk_norm_scale": torch.ones(shape.heads)}

    def scores(self, block: Block) -> Tensor:
        products = rms(block.q) @ rms(block.k).transpose(-1, -2)
        return products * block.scale * block.of_heads("qk_norm_scale")

    def alone(self, k: Tensor, row: Row) -> Tensor:
        lengths = [(one @ one / len(one) + EPS).sqrt() for one in (row.q, k)]
        return row.learned["qk_norm_scale"] * (row.q @ k) * row.scale / (lengths[0] * lengths[1])
