"""Multi-head attention's projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.knobs import NonNegative
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, StreamShape
from headwise.layers.projections import Linears


@layer_part("project", "heads")
@dataclass(frozen=True)
class Heads(Project):
    """Every head has queries, keys and values of its own.

    key_dim: channels of queries and keys; 0 is the width of a head.
    """

    key_dim: NonNegative = 0
    card: ClassVar[LayerCard] = LayerCard(
        "Multi-head projection",
        "Attention Is All You Need, 1706.03762, section 3.2.2",
        "nothing",
        "q, k, v = W_q x, W_k x, W_v x, cut into heads",
    )

    def shape(self, dims: Dims) -> StreamShape:
        return StreamShape(dims.heads, dims.heads, dims.heads, self.key_dim or dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Linears:
        return Linears(dims, self.shape(dims))
