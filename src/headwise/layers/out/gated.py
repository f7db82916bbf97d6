"""An output that is normed by head and gated by the layer's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.knobs import NonNegative
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.norms import RmsNorm, wide
from headwise.layers.projections import linear, merged, split


@layer_part("out", "gated")
@dataclass(frozen=True)
class Gated(Out):
    """What a head read is normed, then gated channel by channel.

    activation: of the gate. rank: channels through which the gate is made, with a bias; 0 makes it in one step.
    """

    activation: Literal["silu", "sigmoid"] = "silu"
    rank: NonNegative = 0
    card: ClassVar[LayerCard] = LayerCard(
        "Normed and gated output",
        "RetNet, 2307.08621, section 2.3; Kimi Linear, 2510.26692, section 4, has sigmoid",
        "the token itself decides which channels of what was read pass",
        "y = W_o (rmsnorm(o_h) * act(W_g x))",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> GatedHeads:
        return GatedHeads(self, dims, heads, head_dim)


class GatedHeads(nn.Module):
    """The module of `gated`."""

    def __init__(self, part: Gated, dims: Dims, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.act = F.silu if part.activation == "silu" else torch.sigmoid
        width = heads * head_dim
        self.gate: nn.Module = linear(dims.width, width)
        if part.rank:
            self.gate = nn.Sequential(linear(dims.width, part.rank), nn.Linear(part.rank, width))
        self.norm = RmsNorm(head_dim)
        self.o = linear(width, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]`, `x [batch, tokens, width]` -> as `x`."""
        gate = self.act(wide(split(self.gate(x), self.heads)))
        return self.o(merged((self.norm(read) * gate).to(read.dtype)))
