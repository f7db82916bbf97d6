"""The mix of a sentence that names none: every token reads all before it, by a score and a normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.errors import RecipeError
from headwise.layers.base import Dims, Lane, Mix, State, Streams, StreamShape, heads_of, repeated
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.norms import wide
from headwise.layers.pairs import Block, Normalise, PairWeights, Position, Row, Score
from headwise.layers.score.dot import Dot

SEGMENT_BYTES = 8  # of the segment that is kept of every token
NUMBERS = 2**24  # held for the pairs of a block at once: the queries of a longer text come in blocks


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

    def build(self, dims: Dims, shape: StreamShape) -> PairWeights:
        if shape.shared and self.normalise.weighs:
            raise RecipeError(
                f"'{self.normalise.name}' weighs the values of tokens, and this projection's values are channels of "
                "its keys; take a projection that stores values, such as gqa(2)"
            )
        parts = (self.position, self.score, self.normalise)
        learned = [one for part in parts for one in part.learned(dims, shape).items()]
        gates = [one for part in parts for one in part.gates(dims, shape).items()]
        return PairWeights(dict(learned), dict(gates))

    def shown(self, streams: Streams, module: nn.Module, x: Tensor) -> Streams:
        assert isinstance(module, PairWeights)
        return replace(streams, gates=module(x), learned=dict(module.learned.items()))

    def empty(self, streams: Streams) -> Pairs:
        nothing = streams.between(0, 0)
        return Pairs(nothing.k, None if streams.shared else nothing.v, nothing.segments)

    def chunk(self, streams: Streams, state: State) -> tuple[Tensor, Pairs]:
        after = self._after(streams, state)
        heads = heads_of(streams)
        k = repeated(after.keys, heads)
        v = repeated(after.keys[..., : streams.shared] if after.values is None else after.values, heads)
        plain = isinstance(self.score, Dot) and isinstance(self.normalise, Softmax)
        shown = k if plain and not self.position.adds else wide(k)  # scores are computed in float32
        read = []
        for block in self._blocks(streams, shown, after.segments):
            if plain:
                mask = block.seen
                if self.position.adds:
                    mask = self.position.bias(block).to(k.dtype).masked_fill(~block.seen, float("-inf"))
                q = block.q.to(k.dtype)
                read.append(F.scaled_dot_product_attention(q, k, v, mask, scale=streams.scale))
            else:
                read.append((self._weights(block) @ wide(v)).to(v.dtype))
        return torch.cat(read, dim=2), after

    step = chunk

    def weights(self, streams: Streams) -> Tensor:
        """The weights of whole texts, [batch, heads, tokens, tokens]: what regularisers and lenses look at."""
        after = self._after(streams, self.empty(streams))
        blocks = self._blocks(streams, wide(repeated(after.keys, heads_of(streams))), after.segments)
        return torch.cat([self._weights(block) for block in blocks], dim=2)

    def pairs(self, streams: Streams) -> tuple[int, int]:
        """How many pairs of whole texts are read, over all heads, and how many causal attention would read."""
        blocks = self._blocks(streams, repeated(streams.k, heads_of(streams)), streams.segments)
        count = sum(int(block.seen.sum()) for block in blocks) * heads_of(streams)
        return count, count

    def _after(self, streams: Streams, state: State) -> Pairs:
        """The state with the new tokens."""
        assert isinstance(state, Pairs)
        keys = torch.cat((state.keys, streams.k), dim=2)
        segments = torch.cat((state.segments, streams.segments), dim=1)
        if state.values is None:
            return Pairs(keys, None, segments)
        new = self.normalise.values(streams.v, streams.gates)
        return Pairs(keys, torch.cat((state.values, new), dim=2), segments)

    def _blocks(self, streams: Streams, k: Tensor, segments: Tensor) -> Iterator[Block]:
        """The queries against all keys `k [batch, heads, keys, dim]`, in blocks whose pairs fit into memory."""
        tokens, keys = streams.q.shape[2], k.shape[2]
        count = max(1, NUMBERS // (k.shape[0] * k.shape[1] * keys * self.score.numbers))
        places = torch.arange(keys, device=k.device)
        for start in range(0, tokens, count):
            part = streams.between(start, min(start + count, tokens))
            first = keys - tokens + start
            distance = places[first : first + part.q.shape[2], None] - places
            seen = (part.segments[:, :, None] == segments[:, None, :]) & (distance >= 0)
            q = repeated(part.q, k.shape[1]).to(k.dtype)
            yield Block(q, k, seen[:, None], distance, part.gates, part.learned, part.scale)

    def _weights(self, block: Block) -> Tensor:
        scores = self.score.scores(block)
        if self.position.adds:
            scores = scores + self.position.bias(block)
        return self.normalise.weights(scores, block)

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        values = 0 if shape.shared else shape.value_heads * shape.value_dim
        return tokens * ((shape.key_heads * shape.key_dim + values) * element + SEGMENT_BYTES)

    def alone(self, lane: Lane) -> Tensor:
        read, v = [], self.normalise.values(lane.v, lane.gates)
        for i in range(len(lane.q)):
            own = {name: one[i] for name, one in lane.gates.items()}
            row = Row(lane.q[i], lane.k[: i + 1], own, lane.learned, lane.scale, lane.head, lane.heads)
            scores = torch.stack([self.score.alone(k, row) for k in row.k])
            if self.position.adds:
                scores = scores + self.position.alone(row)
            read.append(self.normalise.alone(scores, row) @ v[: i + 1])
        return torch.stack(read)
