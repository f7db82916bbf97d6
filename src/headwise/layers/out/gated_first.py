"""Mamba-2's output: gated, then normed over all heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.norms import RmsNorm, wide
from headwise.layers.projections import linear, merged


@layer_part("out", "gated_first")
@dataclass(frozen=True)
class GatedFirst(Out):
    """What the heads read is gated, then normed over the channels of all of them."""

    card: ClassVar[LayerCard] = LayerCard(
        "Output gated before its norm",
        "Mamba-2, 2405.21060, section 7.1",
        "the token itself decides which channels of what was read pass",
        "y = W_o rmsnorm(o * silu(W_g x))",
        deviations="one group of the norm",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> GatedAll:
        return GatedAll(dims, heads * head_dim)


class GatedAll(nn.Module):
    """The module of `gated_first`."""

    def __init__(self, dims: Dims, width: int) -> None:
        super().__init__()
        self.gate = linear(dims.width, width)
        self.norm = RmsNorm(width)
        self.o = linear(width, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]`, `x [batch, tokens, width]` -> as `x`."""
        gated = wide(merged(read)) * F.silu(wide(self.gate(x)))
        return self.o(self.norm(gated).to(read.dtype))
