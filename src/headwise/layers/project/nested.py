"""Queries and keys that attention has already been at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import NonNegative
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.attend import SEGMENT_BYTES, Attend
from headwise.layers.base import Dims, Project, State, Streams, StreamShape
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.position.nope import Nope
from headwise.layers.projections import Linears
from headwise.layers.score.dot import Dot


@layer_part("project", "nested")
@dataclass(frozen=True)
class Nested(Project):
    """Before they are used, queries and keys are replaced by what attention by them reads of all queries and keys
    before, once or several times over.

    depth: how often; 0 is multi-head attention.
    """

    depth: NonNegative = 1
    card: ClassVar[LayerCard] = LayerCard(
        "Nested attention",
        "Nexus, 2512.03377, section 3",
        "what a token asks and answers is gathered from the tokens before it, with no weights more",
        "Q_(m+1) = softmax(Q_m K_m^T / sqrt(d)) Q_m, K_(m+1) = softmax(Q_m K_m^T / sqrt(d)) K_m, Q_0 = X W_q, K_0 = X "
        "W_k",
        systems=(205,),
        deviations="no code was found, and the paper was known by its abstract alone: that inner attention has the "
        "outer queries and keys as its values is how its sharing of weights is read here; positions enter the outer "
        "attention alone; queries and keys of every level are held",
    )

    def shape(self, dims: Dims) -> StreamShape:
        return StreamShape(dims.heads, dims.heads, dims.heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> NestedLinears:
        return NestedLinears(self.depth, dims, self.shape(dims))

    def token_bytes(self, dims: Dims, element: int) -> int:
        return self.depth * (3 * dims.heads * dims.head_dim * element + SEGMENT_BYTES)


@dataclass(frozen=True, eq=False)
class Level(State):
    """What the attention of one level holds, and that of the levels below it."""

    own: State
    below: Level | None

    def truncated(self, tokens: int) -> Level:
        """The state without its last `tokens` tokens."""
        below = None if self.below is None else self.below.truncated(tokens)
        return Level(self.own.truncated(tokens), below)


class NestedLinears(Linears):
    """The module of `nested`."""

    def __init__(self, depth: int, dims: Dims, shape: StreamShape) -> None:
        super().__init__(dims, shape)
        self.depth, self.reader = depth, Attend(Nope(), Dot(), Softmax())

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x`, and what the levels hold of all tokens."""
        streams, _ = super().forward(x, segments, None)
        assert state is None or isinstance(state, Level)
        return self._level(streams, state, self.depth)

    def _level(self, streams: Streams, state: Level | None, depth: int) -> tuple[Streams, Level | None]:
        """The streams after so many levels."""
        if depth == 0:
            return streams, None
        streams, below = self._level(streams, None if state is None else state.below, depth - 1)
        inner = replace(streams, v=torch.cat((streams.q, streams.k), -1))
        read, own = self.reader.chunk(inner, self.reader.empty(inner) if state is None else state.own)
        q, k = read.chunk(2, dim=-1)
        return replace(streams, q=q, k=k), Level(own, below)
