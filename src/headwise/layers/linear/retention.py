"""Retention: rotated queries and keys over a memory that fades by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Lane, Streams, StreamShape
from headwise.layers.decayed import Decayed, decayed_sum
from headwise.layers.gates import FixedDecay, Gates
from headwise.layers.running import Terms


@layer_part("mix", "retention")
@dataclass(frozen=True)
class Retention(Decayed):
    """Each head's memory decays by a fixed factor a token, the same in all layers.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "rope | gated"
    card: ClassVar[LayerCard] = LayerCard(
        "Retention",
        "Retentive Network, 2307.08621, sections 2.1 to 2.3",
        "a memory a head that fades stands for all keys, and nothing divides what is read",
        "o_i = sum_(j <= i) gamma_h^(i-j) (q_i . k_j) v_j / sqrt(d), gamma_h = 1 - 2^(-5 - h)",
        state="constant",
        deviations="rotary positions in the place of xPos; the norm by head is RMS, as in flash-linear-attention",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        heads = torch.arange(shape.heads, dtype=torch.float32)
        return Gates({"decay": FixedDecay((1 - 2.0 ** (-5 - heads)).log())})

    def terms(self, streams: Streams) -> Terms:
        return Terms(streams.q * streams.scale, streams.k, streams.v, streams.gates["decay"])

    def alone(self, lane: Lane) -> Tensor:
        return decayed_sum(lane, lane.v) * lane.scale
