"""LightNet: a softmax over time for each channel of the keys, in the place of a decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.averaged import Averaged, averages
from headwise.layers.base import Lane, Streams, StreamShape
from headwise.layers.norms import wide


@layer_part("mix", "lightnet")
@dataclass(frozen=True)
class LightNet(Averaged):
    """Each channel of the keys keeps an average of the values, weighed by its exponentials; a query adds averages.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "gated"
    card: ClassVar[LayerCard] = LayerCard(
        "LightNet",
        "You Only Scan Once, 2405.21022, section 3.3",
        "no token fades by its distance: what is written is divided by all that was written, channel by channel",
        "o_t = sum_c silu(q_tc) sum_(j <= t) exp(k_jc - z_tc) v_j, z_tc = log sum_(j <= t) exp(k_jc)",
        systems=(310,),
        state="constant",
        deviations="of row 310 the causal scan: no MD-TPE or MD-LRPE positions, no scan of images without an order; "
        "the gate is made in one step, the norm is of a head, and keys and values are of the width of a head",
    )

    def rows(self, shape: StreamShape) -> int:
        return shape.key_dim

    def logits(self, streams: Streams) -> Tensor:
        return wide(streams.k)

    def asks(self, streams: Streams) -> Tensor:
        return F.silu(wide(streams.q))

    def alone(self, lane: Lane) -> Tensor:
        asks = lane.q / (1 + (-lane.q).exp())
        return torch.einsum("tc,tcv->tv", asks, averages(lane.k, lane.v))
