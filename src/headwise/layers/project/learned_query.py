"""Queries that no token makes: one is learned for each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, Projection, State, Streams, StreamShape
from headwise.layers.projections import linear, split


@layer_part("project", "learned_query")
@dataclass(frozen=True)
class LearnedQuery(Project):
    """Keys and values as in multi-head attention; every token asks with the query that its head has learned."""

    card: ClassVar[LayerCard] = LayerCard(
        "Learned queries",
        "Attention as an RNN, 2405.13956, section 3.3; Set Transformer's pooling, 1810.00825, section 3.2",
        "what a head looks for is the same at every token",
        "q_h learned, k_h = W_k,h x, v_h = W_v,h x",
        systems=(255,),
    )

    def shape(self, dims: Dims) -> StreamShape:
        return StreamShape(dims.heads, dims.heads, dims.heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Asking:
        return Asking(dims)


class Asking(Projection):
    """The module of `learned_query`."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.heads, width = dims.heads, dims.heads * dims.head_dim
        self.query = nn.Parameter(torch.randn(dims.heads, 1, dims.head_dim))
        self.k, self.v = linear(dims.width, width), linear(dims.width, width)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x [batch, tokens, width]`; there is no state."""
        k, v = split(self.k(x), self.heads), split(self.v(x), self.heads)
        return Streams(self.query.expand_as(k), k, v, segments, k.shape[-1] ** -0.5), None
