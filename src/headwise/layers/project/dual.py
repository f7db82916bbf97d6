"""Some heads read what tokens are, and others how tokens relate to the one that asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, Projection, State, Streams, StreamShape
from headwise.layers.projections import Linears, linear, split


@layer_part("project", "dual")
@dataclass(frozen=True)
class Dual(Project):
    """The last heads are relational: of a token they read how it relates to the query, in a few inner products, and
    which symbol it has; never what it is.

    relational: heads of this kind. relations: inner products of a head. symbols: of a layer, of which a token's is
    chosen by attention.
    """

    relational: NonNegative = 2
    relations: Positive = 2
    symbols: Positive = 8
    card: ClassVar[LayerCard] = LayerCard(
        "Dual attention",
        "Disentangling and Integrating Relational and Sensory Information in Transformers, 2405.16727, section 3",
        "some heads tell how tokens relate, apart from what they are",
        "o_i = sum_j a_ij (W_r r_ij + W_s s_j), r_ij,l = <W_q,l x_i, W_k,l x_j>, s_j = softmax(W x_j . c) S",
        systems=(174,),
        deviations="sums of inner products are inner products of sums, so that relation keys and symbols are read as "
        "values, half a head's channels each; symbols by symbolic attention alone of its three kinds; W_r and W_s are "
        "each head's own",
    )

    def shape(self, dims: Dims) -> StreamShape:
        if self.relational > dims.heads:
            raise RecipeError(f"dual: {self.relational} relational heads of {dims.heads}; give {dims.heads} or less")
        if self.relational and (dims.head_dim % 2 or (dims.head_dim // 2) % self.relations):
            raise RecipeError(
                f"dual: half of {dims.head_dim} channels is no multiple of {self.relations} relations; give relations "
                "a number that divides it"
            )
        return StreamShape(dims.heads, dims.heads, dims.heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Projection:
        return DualLinears(self, dims) if self.relational else Linears(dims, self.shape(dims))


class DualLinears(Projection):
    """The module of `dual`."""

    def __init__(self, part: Dual, dims: Dims) -> None:
        super().__init__()
        self.part, self.heads, self.head_dim = part, dims.heads, dims.head_dim
        half, sensory = dims.head_dim // 2, dims.heads - part.relational
        self.q, self.k = (linear(dims.width, dims.heads * dims.head_dim) for _ in range(2))
        self.v = linear(dims.width, sensory * dims.head_dim)
        self.relation_q, self.relation_k = (linear(dims.width, part.relational * half) for _ in range(2))
        self.template = linear(dims.width, part.symbols)
        self.symbols = nn.Parameter(torch.randn(part.symbols, part.relational * half))
        self.of_relations = nn.Parameter(torch.randn(part.relational, part.relations, dims.head_dim))
        self.of_symbols = nn.Parameter(torch.randn(part.relational, half, dims.head_dim) * half**-0.5)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x`; there is no state."""
        symbols = self.template(x).softmax(-1) @ self.symbols
        heads = self.part.relational
        relational = torch.cat((split(self.relation_k(x), heads), split(symbols, heads)), -1)
        sensory = self.v(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k = split(self.q(x), self.heads), split(self.k(x), self.heads)
        return Streams(q, k, torch.cat((sensory, relational), 1), segments, self.head_dim**-0.5), None

    def finish(self, read: Tensor, x: Tensor) -> Tensor:
        """What relational heads read, as relations to the query's own token and symbols."""
        heads = self.part.relational
        sensory, relational = read.split((self.heads - heads, heads), dim=1)
        keys, symbols = relational.chunk(2, dim=-1)
        asked = split(self.relation_q(x), heads)
        products = (asked * keys).unflatten(-1, (self.part.relations, -1)).sum(-1)
        found = products @ self.of_relations + symbols @ self.of_symbols
        return torch.cat((sensory, found.to(read.dtype)), 1)
