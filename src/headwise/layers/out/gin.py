"""Attention's weights as a graph: a token is added to what it read, and a network follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.projections import linear, merged


@layer_part("out", "gin")
@dataclass(frozen=True)
class Gin(Out):
    """A network of one hidden layer reads the token, times 1 + a learned number, plus what its heads read."""

    card: ClassVar[LayerCard] = LayerCard(
        "Graph isomorphism network over attention",
        "Graph-Aware Isomorphic Attention, 2501.02393, section 2",
        "tokens are nodes that keep themselves beside what they read",
        "y = W_2 relu(W_1 ((1 + eps) x + W_o [o_1, ..., o_h]))",
        systems=(263,),
        deviations="one network over all heads, where the paper has one a head; the paper's other aggregates and its "
        "sparse adapter are not here",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> Isomorphic:
        return Isomorphic(dims, heads * head_dim)


class Isomorphic(nn.Module):
    """The module of `gin`."""

    def __init__(self, dims: Dims, width: int) -> None:
        super().__init__()
        self.o = linear(width, dims.width)
        self.eps = nn.Parameter(torch.zeros(()))
        self.inside, self.outside = linear(dims.width, dims.width), linear(dims.width, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]`, `x [batch, tokens, width]` -> as `x`."""
        return self.outside(self.inside(self.node(read, x)).relu())

    def node(self, read: Tensor, x: Tensor) -> Tensor:
        """A token with what it read, before the network; at eps = -1 that is attention's output alone."""
        return (1 + self.eps) * x + self.o(merged(read))
