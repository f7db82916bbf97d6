"""Multi-query attention: one head of keys and values for all heads of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, StreamShape
from headwise.layers.projections import Linears


@layer_part("project", "mqa")
@dataclass(frozen=True)
class Mqa(Project):
    """All heads of queries share one head of keys and one of values."""

    card: ClassVar[LayerCard] = LayerCard(
        "Multi-query projection",
        "Fast Transformer Decoding: One Write-Head is All You Need, 1911.02150, section 3",
        "keys and values are stored once and not once a head",
        "q_h = W_q,h x, k = W_k x, v = W_v x",
        systems=(177,),
        deviations="of row 177 a decoder's layers alone, none that read an encoder",
    )

    def shape(self, dims: Dims) -> StreamShape:
        return StreamShape(dims.heads, 1, 1, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Linears:
        return Linears(dims, self.shape(dims))
