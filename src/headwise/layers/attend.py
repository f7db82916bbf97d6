"""The mix of a sentence that names none: every token reads all before it, by a score and a normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layers.base import Lane, Mix, Normalise, Position, Score, State, Streams, StreamShape, heads_of, repeated
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.norms import wide
from headwise.layers.score.dot import Dot

SEGMENT_BYTES = 8  # of the segment that is kept of every token


@dataclass(frozen=True, eq=False)
class Pairs(State):
    """Keys [batch, key heads, tokens, dim] and values of all tokens so far, and their segments [batch, tokens].

    values: None where they are the first `shared` channels of the keys.
    """

    keys: Tensor
    values: Tensor | None
    segments: Tensor

    def truncated(self, tokens: int) -> Pairs:
        """The state without its last `tokens` tokens."""
        left = self.segments.shape[1] - tokens
        values = None if self.values is None else self.values[:, :, :left]
        return Pairs(self.keys[:, :, :left], values, self.segments[:, :left])


@dataclass(frozen=True)
class Attend(Mix):
    """Attention over pairs, made of the sentence's own position, score and normalisation."""

    position: Position
    score: Score
    normalise: Normalise

    def __post_init__(self) -> None:
        """Its parts were checked when they were made."""

    def empty(self, streams: Streams) -> Pairs:
        nothing = streams.between(0, 0)
        return Pairs(nothing.k, None if streams.shared else nothing.v, nothing.segments)

    def chunk(self, streams: Streams, state: State) -> tuple[Tensor, Pairs]:
        assert isinstance(state, Pairs)
        keys = torch.cat((state.keys, streams.k), dim=2)
        segments = torch.cat((state.segments, streams.segments), dim=1)
        values = None if state.values is None else torch.cat((state.values, streams.v), dim=2)
        after = Pairs(keys, values, segments)
        seen, distance = _seen(streams.segments, segments)
        heads = heads_of(streams)
        k = repeated(keys, heads)
        v = repeated(keys[..., : streams.shared] if values is None else values, heads)
        bias = self.position.bias(distance, heads) if self.position.adds else None
        if isinstance(self.score, Dot) and isinstance(self.normalise, Softmax):
            mask = seen if bias is None else bias.to(k.dtype).masked_fill(~seen, float("-inf"))
            return F.scaled_dot_product_attention(streams.q, k, v, mask, scale=streams.scale), after
        scores = self.score.scores(wide(streams.q), wide(k), streams.scale)
        weights = self.normalise.weights(scores if bias is None else scores + bias, seen)
        return (weights @ wide(v)).to(v.dtype), after

    step = chunk

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        values = 0 if shape.shared else shape.value_heads * shape.value_dim
        return tokens * ((shape.key_heads * shape.key_dim + values) * element + SEGMENT_BYTES)

    def alone(self, lane: Lane) -> Tensor:
        read = []
        for i in range(len(lane.q)):
            distance = torch.arange(i, -1, -1)[None]
            scores = torch.stack([self.score.alone(lane.q[i], lane.k[j], lane.scale) for j in range(i + 1)])
            if self.position.adds:
                scores = scores + self.position.bias(distance, lane.heads)[lane.head, 0]
            read.append(self.normalise.alone(scores) @ lane.v[: i + 1])
        return torch.stack(read)


def _seen(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last tokens' segments and those of all: whom a query sees, [batch, 1, queries, keys], and how far
    before it each key is, [queries, keys]."""
    count = keys.shape[1]
    places = torch.arange(count, device=keys.device)
    distance = places[count - queries.shape[1] :, None] - places
    return ((queries[:, :, None] == keys[:, None, :]) & (distance >= 0))[:, None], distance
