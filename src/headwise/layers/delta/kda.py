"""Kimi delta attention: a memory that is corrected, and whose channels fade each at its own speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.knobs import NonNegative
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Lane, StreamShape
from headwise.layers.delta_rule import DeltaRule, delta_sum
from headwise.layers.gates import Beta, Decay, Gates
from headwise.layers.projections import linear


@layer_part("mix", "kda")
@dataclass(frozen=True)
class Kda(DeltaRule):
    """A token lets each channel of the memory fade, then replaces a share of what it holds under the token's key.

    rank: channels through which the decays are made; 0 is the width of a head. block: tokens that are computed at once.
    """

    rank: NonNegative = 0
    usual: ClassVar[str] = "short_conv | gated('sigmoid', rank=16)"
    card: ClassVar[LayerCard] = LayerCard(
        "Kimi delta attention",
        "Kimi Linear, 2510.26692, sections 3 and 4",
        "a memory a head, corrected under each key, its channels fading each at its own speed, stands for all keys",
        "M_t = (I - b_t k_t k_t^T) diag(a_t) M_(t-1) + b_t k_t v_t^T, o_t = M_t^T q_t / sqrt(d), "
        "log a_t = -exp(A) softplus(W_2 W_1 x_t + c), |q_t| = |k_t| = 1",
        systems=(274,),
        state="constant",
        equals=(
            Limit(
                "all channels fade alike: Gated DeltaNet",
                "gated_delta",
                lambda s: s.with_gates(decay=s.gates["decay"][..., :1]),
            ),
            Limit(
                "nothing fades: DeltaNet",
                "delta",
                lambda s: s.with_gates(decay=torch.zeros_like(s.gates["decay"])),
            ),
        ),
        deviations="the gate of the output passes 16 channels, the paper's a head's; of row 274 no claim on recall yet",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        rank = self.rank or dims.head_dim
        through = nn.Sequential(linear(dims.width, rank), linear(rank, shape.heads * shape.key_dim))
        decay = Decay(through, shape.heads, shape.key_dim)
        return Gates({"beta": Beta(dims.width, shape.heads), "decay": decay})

    def alone(self, lane: Lane) -> Tensor:
        return delta_sum(lane, lane.gates["decay"])
