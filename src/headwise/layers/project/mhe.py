"""One projection for all heads, which differ by what is learned for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, Projection, State, Streams, StreamShape
from headwise.layers.projections import linear


@layer_part("project", "mhe")
@dataclass(frozen=True)
class Mhe(Project):
    """All heads share one projection to queries, keys and values, and each has an embedding for each of the three.

    how: the embedding is added to what was projected, or 1 + it multiplies that.
    """

    how: Literal["add", "multiply"] = "multiply"
    card: ClassVar[LayerCard] = LayerCard(
        "Multiple-head embeddings",
        "Pit One Against Many, 2310.07911, section 3",
        "a head is three vectors, not three matrices",
        "q_h = W_q x + e_q,h or W_q x * (1 + e_q,h), and so k and v",
        systems=(204,),
        deviations="of row 204 the layer and its parameters alone; every head's keys and values are stored",
    )

    def shape(self, dims: Dims) -> StreamShape:
        return StreamShape(dims.heads, dims.heads, dims.heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Embedded:
        return Embedded(self, dims)


class Embedded(Projection):
    """The module of `mhe`."""

    def __init__(self, part: Mhe, dims: Dims) -> None:
        super().__init__()
        self.adds, self.scale = part.how == "add", dims.head_dim**-0.5
        self.q, self.k, self.v = (linear(dims.width, dims.head_dim) for _ in range(3))
        self.embeddings = nn.Parameter(torch.randn(3, dims.heads, dims.head_dim) * 0.5)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x`; there is no state."""
        made = []
        for one, own in zip((self.q, self.k, self.v), self.embeddings[:, :, None], strict=True):
            shared = one(x)[:, None]
            made.append(shared + own if self.adds else shared * (1 + own))
        q, k, v = made
        return Streams(q, k, v, segments, self.scale), None
