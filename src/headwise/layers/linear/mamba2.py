"""Mamba-2: a state space whose heads forget as the token says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Lane, Streams, StreamShape
from headwise.layers.decayed import Decayed, decayed_sum
from headwise.layers.gates import RATES, Steps
from headwise.layers.norms import wide
from headwise.layers.projections import linear
from headwise.layers.running import Terms


@layer_part("mix", "mamba2")
@dataclass(frozen=True)
class Mamba2(Decayed):
    """A memory decays, and is written to, by steps that the token decides; what a head is given passes beside it too.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "short_conv(key_heads=1, bias=True) | gated_first"
    card: ClassVar[LayerCard] = LayerCard(
        "Mamba-2",
        "Transformers are SSMs, 2405.21060, sections 5 to 7 (its C, B and x are q, k and v)",
        "a memory a head that fades as the token says stands for all keys",
        "M_t = exp(-A d_t) M_(t-1) + d_t B_t x_t^T, y_t = M_t^T C_t + D x_t, d_t = softplus(W x_t + b)",
        state="constant",
        equals=(
            Limit(
                "steps of 1 and nothing beside the memory: gated linear attention with one decay for all channels",
                "gla",
                lambda s: s.with_gates(
                    step=torch.full_like(s.gates["step"], s.scale),
                    skip=torch.zeros_like(s.gates["skip"]),
                ),
            ),
        ),
        deviations="widths of the state are those of a head unless key_dim says otherwise; steps have no bounds",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        return Selective(dims.width, shape.heads)

    def terms(self, streams: Streams) -> Terms:
        gates = streams.gates
        return Terms(streams.q, streams.k, wide(streams.v) * gates["step"], gates["decay"])

    def finish(self, read: Tensor, streams: Streams) -> Tensor:
        return read + streams.gates["skip"] * streams.v

    def alone(self, lane: Lane) -> Tensor:
        return decayed_sum(lane, lane.gates["step"] * lane.v) + lane.gates["skip"] * lane.v


class Selective(nn.Module):
    """The gates of `mamba2`, each [batch, heads, tokens, 1]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.steps = Steps(linear(width, heads), heads, 1)
        self.rate = nn.Parameter(torch.empty(heads).uniform_(*RATES).log())
        self.skip = nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`x [batch, tokens, width]` -> "step", "decay" and "skip"."""
        step = self.steps(x)
        skip = wide(self.skip)[:, None, None].expand_as(step)
        return {"step": step, "decay": -wide(self.rate).exp()[:, None, None] * step, "skip": skip}
