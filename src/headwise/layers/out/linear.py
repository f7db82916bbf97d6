"""The output projection of plain attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.projections import linear, merged


@layer_part("out", "linear_out")
@dataclass(frozen=True)
class LinearOut(Out):
    """One linear layer over what all heads read."""

    card: ClassVar[LayerCard] = LayerCard(
        "Output projection",
        "Attention Is All You Need, 1706.03762, section 3.2.2",
        "nothing",
        "y = W_o [o_1, ..., o_h]",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> Merged:
        return Merged(dims, heads * head_dim)


class Merged(nn.Module):
    """The module of `linear_out`."""

    def __init__(self, dims: Dims, width: int) -> None:
        super().__init__()
        self.o = linear(width, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]` -> [batch, tokens, width]."""
        return self.o(merged(read))
