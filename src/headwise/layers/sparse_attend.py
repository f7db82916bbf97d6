"""Attention over those pairs that a trained pattern reads; keys that no later query can read are given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError, ShapeError
from headwise.layers import attend
from headwise.layers.attend import SEGMENT_BYTES, Attend
from headwise.layers.base import NOWHERE, Dims, Lane, State, Streams, StreamShape, heads_of, repeated
from headwise.layers.norms import wide
from headwise.layers.pairs import Block, PairWeights, Row
from headwise.layers.patterns import Field, Lone, Pattern

PLACE_BYTES = 8  # of the place that is kept of every token


@dataclass(frozen=True, eq=False)
class Held(State):
    """The keys that are held [batch, key heads, held, dim], their values, segments and places.

    segments and places are [batch, key heads, held] where heads hold different tokens, else [batch, 1, held].
    last [batch, 2]: segment and place of the newest token. values: None where they are channels of the keys.
    tokens: how many there were.
    """

    keys: Tensor
    values: Tensor | None
    segments: Tensor
    places: Tensor
    last: Tensor
    tokens: int

    def truncated(self, tokens: int) -> State:
        """The state without its last `tokens` tokens; refused once keys were given up, in any head and row."""
        if self.keys.shape[2] != self.tokens or bool((self.segments == NOWHERE).any()):
            return super().truncated(tokens)
        if not 0 <= tokens <= self.tokens:
            raise ShapeError(f"of {self.tokens} tokens {tokens} cannot be taken; take 0 to {self.tokens}")
        left = self.tokens - tokens
        values = None if self.values is None else self.values[:, :, :left]
        segments, places = self.segments[:, :, :left], self.places[:, :, :left]
        last = torch.stack((segments[:, 0, -1], places[:, 0, -1]), -1) if left else nowhere(self.last)
        return Held(self.keys[:, :, :left], values, segments, places, last, left)


def nowhere(like: Tensor) -> Tensor:
    """`last` before the first token."""
    return torch.tensor([NOWHERE, -1], device=like.device).expand(len(like), 2)


class PatternWeights(PairWeights):
    """What the parts of sparse attention learn, and what of a pattern no gradient moves."""

    def __init__(self, learned: dict[str, Tensor], gates: dict[str, nn.Module], fixed: dict[str, Tensor]) -> None:
        super().__init__(learned, gates)
        self.fixed = tuple(fixed)
        for name, one in fixed.items():
            self.register_buffer(name, one)

    @property
    def held(self) -> dict[str, Tensor]:
        """All of it by name, [heads, ...]."""
        return dict(self.learned.items()) | {name: getattr(self, name) for name in self.fixed}


@dataclass(frozen=True)
class SparseAttend(Attend):
    """Attention over the pairs of a pattern, made of the sentence's own position, score and normalisation."""

    pattern: Pattern

    @property
    def forgets(self) -> bool:
        """Whether keys are given up; a position that adds to scores is asked about all of them."""
        return self.pattern.forgets and not self.position.adds

    def build(self, dims: Dims, shape: StreamShape) -> PatternWeights:
        if self.pattern.softmax_only and self.normalise.name != "softmax":
            raise RecipeError(
                f"'{self.pattern.name}' makes its weights by softmaxes of its own, and '{self.normalise.name}' would "
                "do nothing; leave one of the two out"
            )
        plain = super().build(dims, shape)
        learned = dict(plain.learned.items()) | self.pattern.learned(dims, shape)
        gates = dict(plain.by_name.items()) | self.pattern.gates(dims, shape)
        return PatternWeights(learned, gates, self.pattern.fixed(dims, shape))

    def shown(self, streams: Streams, module: nn.Module, x: Tensor) -> Streams:
        assert isinstance(module, PatternWeights)
        return replace(streams, gates=module(x), learned=module.held)

    def empty(self, streams: Streams) -> Any:
        nothing = streams.between(0, 0)
        heads = streams.k.shape[1] if self.forgets else 1
        none = nothing.segments[:, None].expand(-1, heads, -1)
        values = None if streams.shared else nothing.v
        return Held(nothing.k, values, none, none, nowhere(streams.segments), 0)

    def chunk(self, streams: Streams, state: State) -> tuple[Tensor, Any]:
        held, asks = self._with(streams, state)
        v = wide(repeated(self._values(streams, held), heads_of(streams)))
        read = [(self.pattern.weights(field) @ v).to(streams.v.dtype) for field in self._fields(streams, held, asks)]
        return torch.cat(read, dim=2), self._forgotten(streams, held) if self.forgets else held

    step = chunk

    def weights(self, streams: Streams) -> Tensor:
        """The weights of whole texts, [batch, heads, tokens, tokens]: what regularisers and lenses look at."""
        held, asks = self._with(streams, self.empty(streams))
        return torch.cat([self.pattern.weights(field) for field in self._fields(streams, held, asks)], dim=2)

    def pairs(self, streams: Streams) -> tuple[int, int]:
        held, asks = self._with(streams, self.empty(streams))
        fields = list(self._fields(streams, held, asks))
        every = [field.block.seen.expand(-1, heads_of(streams), -1, -1) for field in fields]
        read = sum(int((self.pattern.seen(f) & one).sum()) for f, one in zip(fields, every, strict=True))
        return read, sum(int(one.sum()) for one in every)

    @staticmethod
    def _values(streams: Streams, held: Held) -> Tensor:
        return held.keys[..., : streams.shared] if held.values is None else held.values

    def _with(self, streams: Streams, state: State) -> tuple[Held, Tensor]:
        """The state with the new tokens, nothing given up, and the places of these [batch, tokens]."""
        assert isinstance(state, Held)
        new = places_of(streams.segments, state.last)
        heads = state.segments.shape[1]
        segments = torch.cat((state.segments, streams.segments[:, None].expand(-1, heads, -1)), -1)
        places = torch.cat((state.places, new[:, None].expand(-1, heads, -1)), -1)
        values = None
        if state.values is not None:
            values = torch.cat((state.values, self.normalise.values(streams.v, streams.gates)), 2)
        last = torch.stack((streams.segments[:, -1], new[:, -1]), -1)
        keys = torch.cat((state.keys, streams.k), 2)
        return Held(keys, values, segments, places, last, state.tokens + new.shape[1]), new

    def _fields(self, streams: Streams, held: Held, asks: Tensor) -> Iterator[Field]:
        """The queries against all keys that are held, in blocks whose pairs fit into memory."""
        heads, tokens = heads_of(streams), streams.q.shape[2]
        k = wide(repeated(held.keys, heads))
        v = wide(repeated(self._values(streams, held), heads))
        segments, places = (repeated(one, heads if self.forgets else 1) for one in (held.segments, held.places))
        count = max(1, attend.NUMBERS // (k.shape[0] * heads * k.shape[2] * self.score.numbers))
        first = torch.arange(k.shape[2], device=k.device)
        for start in range(0, tokens, count):
            part = streams.between(start, min(start + count, tokens))
            own = asks[:, None, start : start + count, None]
            there = places[:, :, None, :]
            seen = (part.segments[:, None, :, None] == segments[:, :, None, :]) & (there <= own)
            after = k.shape[2] - tokens + start
            distance = first[after : after + part.q.shape[2], None] - first  # asked for by positions that add alone
            block = Block(repeated(part.q, heads).to(k.dtype), k, seen, distance, part.gates, part.learned, part.scale)
            yield Field(block, v, own, there, streams.k.shape[1], self._scores, self.normalise)

    def _scores(self, block: Block) -> Tensor:
        scores = self.score.scores(block)
        return scores + self.position.bias(block) if self.position.adds else scores

    def _forgotten(self, streams: Streams, held: Held) -> Held:
        """The state without the keys that no later token reads, every head with as many as the one with most."""
        now = held.segments == held.last[:, :1, None]
        places = held.places.masked_fill(~now, -1)
        last = held.last[:, 1:, None]
        values = self._values(streams, held)
        kept = now & self.pattern.kept(places, last, values, streams.learned)
        count = int(kept.sum(-1).max())
        order = kept.long().sort(dim=-1, descending=True, stable=True).indices[..., :count].sort(-1).values
        segments = held.segments.masked_fill(~kept, NOWHERE).gather(-1, order)

        def of(one: Tensor) -> Tensor:
            return one.gather(2, order[..., None].expand(-1, -1, -1, one.shape[-1]))

        own = None if held.values is None else of(held.values)
        return Held(of(held.keys), own, segments, held.places.gather(-1, order), held.last, held.tokens)

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        own = shape.key_heads * shape.key_dim + (0 if shape.shared else shape.value_heads * shape.value_dim)
        labels = SEGMENT_BYTES + PLACE_BYTES
        if not self.forgets:
            return labels + tokens * (own * element + labels)
        return labels + self.pattern.stored(tokens, shape.key_heads) * (own * element + shape.key_heads * labels)

    def alone(self, lane: Lane) -> Tensor:
        v = self.normalise.values(lane.v, lane.gates)
        return torch.stack([self.pattern.alone(self._lone(lane, v, i)) @ v[: i + 1] for i in range(len(lane.q))])

    def _lone(self, lane: Lane, v: Tensor, i: int) -> Lone:
        """The query of place i, as the plain form of a pattern is shown it."""
        own = {name: one[i] for name, one in lane.gates.items()}
        every = Row(lane.q[i], lane.k[: i + 1], own, lane.learned, lane.scale, lane.head, lane.heads)

        def of(places: Sequence[int]) -> Row:
            return replace(every, k=every.k[list(places)], far=tuple(i - place for place in places))

        def scores(places: Sequence[int]) -> Tensor:
            row = of(places)
            found = torch.stack([self.score.alone(k, row) for k in row.k])
            return found + self.position.alone(row) if self.position.adds else found

        def weigh(places: Sequence[int], bias: Tensor | None) -> Tensor:
            asked = scores(places)
            found = self.normalise.alone(asked if bias is None else asked + bias, of(places))
            return torch.zeros(i + 1, dtype=found.dtype).index_put((torch.tensor(places),), found)

        key_head = lane.head * lane.key_heads // lane.heads
        return Lone(every, v[: i + 1], key_head, lane.key_heads, scores, weigh)


def places_of(segments: Tensor, last: Tensor) -> Tensor:
    """Where tokens of `segments [batch, tokens]` stand in their texts, after a token of segment and place `last`."""
    before = torch.cat((last[:, :1], segments[:, :-1]), 1)
    tokens = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.where(segments != before, tokens, -1).cummax(1).values
    return torch.where(begins < 0, last[:, 1:] + 1 + tokens, tokens - begins)
