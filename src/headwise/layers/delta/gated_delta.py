"""Gated DeltaNet: a memory that is corrected, and fades by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Lane, StreamShape
from headwise.layers.delta_rule import DeltaRule, delta_sum
from headwise.layers.gates import Beta, Decay, Gates
from headwise.layers.projections import linear


@layer_part("mix", "gated_delta")
@dataclass(frozen=True)
class GatedDelta(DeltaRule):
    """A token lets the memory fade, then replaces a share of what it holds under the token's key.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "short_conv | gated"
    card: ClassVar[LayerCard] = LayerCard(
        "Gated DeltaNet",
        "Gated Delta Networks, 2412.06464, section 3; as Qwen3-Next has it",
        "a memory a head, corrected under each key and fading, stands for all keys",
        "M_t = a_t (I - b_t k_t k_t^T) M_(t-1) + b_t k_t v_t^T, o_t = M_t^T q_t / sqrt(d), |q_t| = |k_t| = 1",
        state="constant",
        equals=(
            Limit(
                "nothing fades: DeltaNet",
                "delta",
                lambda s: s.with_gates(decay=torch.zeros_like(s.gates["decay"])),
            ),
        ),
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        decay = Decay(linear(dims.width, shape.heads), shape.heads, 1)
        return Gates({"beta": Beta(dims.width, shape.heads), "decay": decay})

    def alone(self, lane: Lane) -> Tensor:
        return delta_sum(lane, lane.gates["decay"])
