"""DeltaNet: a memory that is corrected and never fades."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Lane, Streams, StreamShape
from headwise.layers.delta_rule import DeltaRule, delta_sum
from headwise.layers.gates import Beta, Gates


@layer_part("mix", "delta")
@dataclass(frozen=True)
class Delta(DeltaRule):
    """A token replaces a share of what the memory holds under its key.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "short_conv | normed"
    card: ClassVar[LayerCard] = LayerCard(
        "DeltaNet",
        "Parallelizing Linear Transformers with the Delta Rule, 2406.06484, sections 2 to 4",
        "a memory a head, corrected under each key, stands for all keys",
        "M_t = (I - b_t k_t k_t^T) M_(t-1) + b_t k_t v_t^T, o_t = M_t^T q_t / sqrt(d), |q_t| = |k_t| = 1",
        state="constant",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        return Gates({"beta": Beta(dims.width, shape.heads)})

    def decay(self, streams: Streams) -> None:
        return None

    def alone(self, lane: Lane) -> Tensor:
        return delta_sum(lane, torch.zeros(len(lane.q), 1, dtype=lane.q.dtype))
