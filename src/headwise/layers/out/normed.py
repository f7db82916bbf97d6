"""An output that is normed by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.norms import RmsNorm
from headwise.layers.projections import linear, merged


@layer_part("out", "normed")
@dataclass(frozen=True)
class Normed(Out):
    """What a head read is normed before the output projection: a running state has no weights that sum to 1."""

    card: ClassVar[LayerCard] = LayerCard(
        "Normed output",
        "The Devil in Linear Transformer, 2210.10340, section 4.1; as DeltaNet has it, 2406.06484, section 4",
        "heads have one size, however large what they read is",
        "y = W_o rmsnorm(o_h)",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> NormedHeads:
        return NormedHeads(dims, heads, head_dim)


class NormedHeads(nn.Module):
    """The module of `normed`."""

    def __init__(self, dims: Dims, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = RmsNorm(head_dim)
        self.o = linear(heads * head_dim, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]` -> [batch, tokens, width]."""
        return self.o(merged(self.norm(read)))
