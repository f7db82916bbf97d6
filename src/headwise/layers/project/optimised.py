"""Projections with fewer matrices: a head's values, or its keys as well, are a slice of the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from headwise.errors import RecipeError
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, Projection, State, Streams, StreamShape
from headwise.layers.projections import linear, split


@layer_part("project", "optimised")
@dataclass(frozen=True)
class Optimised(Project):
    """Values are the token itself, cut into heads; keys as well, where `slices` says so.

    slices: "values" is the paper's optimised attention, "keys" its efficient one.
    """

    slices: Literal["values", "keys"] = "values"
    card: ClassVar[LayerCard] = LayerCard(
        "Optimised and efficient projection",
        "You Need to Pay Better Attention, 2403.01643, sections 3.1 and 3.2",
        "a layer has 3 or 2 matrices in the place of 4",
        "q = W_q x, k = W_k x or x, v = x, cut into heads",
        systems=(179,),
        deviations="of row 179 not super attention, whose matrix fixes the length of texts",
    )

    def shape(self, dims: Dims) -> StreamShape:
        if dims.heads * dims.head_dim != dims.width:
            raise RecipeError(
                f"optimised: {dims.heads} heads of {dims.head_dim} channels are not the {dims.width} channels of a "
                f"token, which heads slice; give heads of {dims.width // dims.heads} channels"
            )
        return StreamShape(dims.heads, dims.heads, dims.heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Sliced:
        return Sliced(self, dims)


class Sliced(Projection):
    """The module of `optimised`."""

    def __init__(self, part: Optimised, dims: Dims) -> None:
        super().__init__()
        self.heads, self.scale = dims.heads, dims.head_dim**-0.5
        self.q = linear(dims.width, dims.width)
        self.k = linear(dims.width, dims.width) if part.slices == "values" else None

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x`; there is no state."""
        k = x if self.k is None else self.k(x)
        q, k, v = (split(one, self.heads) for one in (self.q(x), k, x))
        return Streams(q, k, v, segments, self.scale), None
