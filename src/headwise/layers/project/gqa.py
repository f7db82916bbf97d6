"""Grouped-query attention: a head of keys and values for a few heads of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.errors import RecipeError
from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, StreamShape
from headwise.layers.projections import Linears


@layer_part("project", "gqa")
@dataclass(frozen=True)
class Gqa(Project):
    """Neighbouring heads of queries share a head of keys and values.

    kv_heads: heads of keys and values, of which the layer's heads are a multiple.
    """

    kv_heads: Positive = 2
    card: ClassVar[LayerCard] = LayerCard(
        "Grouped-query projection",
        "GQA, 2305.13245, section 2.2",
        "keys and values are stored once a group of heads",
        "q_h = W_q,h x, k_g = W_k,g x, v_g = W_v,g x with g the group of h",
    )

    def shape(self, dims: Dims) -> StreamShape:
        if dims.heads % self.kv_heads:
            raise RecipeError(
                f"gqa: {dims.heads} heads are no multiple of {self.kv_heads} heads of keys and values; give kv_heads a "
                f"number that divides {dims.heads}"
            )
        return StreamShape(dims.heads, self.kv_heads, self.kv_heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Linears:
        return Linears(dims, self.shape(dims))
