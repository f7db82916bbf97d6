"""What the slots of a layer sentence have in common: sizes, streams of queries, keys and values, and states.

Letters of shapes: [batch, heads, tokens, dim]. Streams may have fewer key heads than query heads, and the other way
round; the larger number is a multiple of the smaller, and a head serves its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import SessionError
from headwise.knobs import Knobs
from headwise.layer_parts import LayerCard

NOWHERE = -2  # the segment before the first token: no token is of it
PADDING = -1  # the segment of padding, which no token of a text is of


@dataclass(frozen=True)
class Dims:
    """The sizes of a layer: the model's width, its heads, the width of a head, and which layer of how many it is."""

    width: int
    heads: int
    head_dim: int
    layer: int = 0
    layers: int = 1


@dataclass(frozen=True)
class StreamShape:
    """What a project part makes: heads of queries, keys and values, and their widths."""

    query_heads: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    shared: bool = False  # the values are channels of the keys, and not stored beside them
    turned: int | None = None  # as `Streams.turned`

    @property
    def heads(self) -> int:
        """Heads of the output: as many as there are of what there is most of."""
        return max(self.query_heads, self.value_heads)


@dataclass(frozen=True)
class Streams:
    """What a mix is shown of the new tokens.

    q [batch, query heads, tokens, key dim], k [batch, key heads, tokens, key dim], v [batch, value heads, tokens,
    value dim]. segments [batch, tokens]: tokens attend to those of their own segment alone; segments are runs of
    neighbours, each with a number of its own, padding is PADDING. gates: what a mix makes of the layer's input
    beside them, by name, [batch, heads, tokens, ...]. learned: what no input changes, by name, [heads, ...]; of fewer
    heads each serves its neighbours.
    scale: of a product of query and key.
    turned: the last channels of keys and queries that a position may turn; None is all of them.
    shared: 0, or how many first channels of the keys are the values as well, and then v is a view of k.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    segments: Tensor
    scale: float
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    turned: int | None = None
    shared: int = 0
    learned: Mapping[str, Tensor] = field(default_factory=dict)

    def with_learned(self, **learned: Tensor) -> Streams:
        """These streams with other learned tensors of these names."""
        return replace(self, learned={**self.learned, **learned})

    def with_gates(self, **gates: Tensor) -> Streams:
        """These streams with other gates of these names."""
        return replace(self, gates={**self.gates, **gates})

    def between(self, start: int, end: int) -> Streams:
        """The tokens [start, end)."""
        cut = {name: one[:, :, start:end] for name, one in self.gates.items()}
        q, k, v = (one[:, :, start:end] for one in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, segments=self.segments[:, start:end], gates=cut)


@dataclass(frozen=True, eq=False)
class State:
    """What a new token finds of those before it. A value: nothing ever changes one, so that keeping one is a snapshot.

    Its tensors have the batch rows first.
    """

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, those of what it consists of included."""
        return sum(one.nbytes for one in self.tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, those of what it consists of in their places."""
        return [each for one in self._parts.values() for each in (one.tensors if isinstance(one, State) else [one])]

    @property
    def _parts(self) -> dict[str, Tensor | State]:
        """Its tensors, and the states that it consists of, by name."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: one for name, one in own.items() if isinstance(one, Tensor | State)}

    def with_tensors(self, tensors: Iterator[Tensor]) -> State:
        """It with the next of these tensors in the places of its own."""
        found = {
            name: one.with_tensors(tensors) if isinstance(one, State) else next(tensors)
            for name, one in self._parts.items()
        }
        return replace(self, **found)

    def rows(self, index: Tensor) -> State:
        """The state of these batch rows, in this order: what beams and batches ask for."""
        found = {name: one.rows(index) if isinstance(one, State) else one[index] for name, one in self._parts.items()}
        return replace(self, **found)

    def truncated(self, tokens: int) -> State:
        """The state without its last `tokens` tokens; refused where what came before is no longer known."""
        raise SessionError(
            f"a {type(self).__name__} of a running layer cannot give back its last {tokens} tokens; keep the state "
            "from before them instead, as a state is a value that nothing changes"
        )


@dataclass(frozen=True)
class Lane:
    """One head of one text: q and k [tokens, key dim], v [tokens, value dim], gates [tokens, ...], learned [...]."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Mapping[str, Tensor]
    scale: float
    head: int
    heads: int
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    key_heads: int = 1  # of the layer, each of which serves neighbouring heads


class LayerPart(Knobs):
    """Base of all parts. name and part (its slot) are set by `layer_part`."""

    name: ClassVar[str]
    part: ClassVar[str]
    card: ClassVar[LayerCard]


class Project(LayerPart, ABC):
    """From the width of a token to queries, keys and values."""

    @abstractmethod
    def shape(self, dims: Dims) -> StreamShape:
        """What it makes in a layer of these sizes; RecipeError where that is impossible."""

    @abstractmethod
    def build(self, dims: Dims) -> Projection:
        """Its trainable module."""

    def state_bytes(self, dims: Dims, element: int) -> int:
        """Bytes of its own state for one sequence of any length, at `element` bytes an element."""
        return 0

    def token_bytes(self, dims: Dims, element: int) -> int:
        """Bytes that its own state grows by with each token."""
        return 0


class Projection(nn.Module, ABC):
    """The module of a project part."""

    @abstractmethod
    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """`x [batch, tokens, width]` -> the streams of the new tokens, and the state after them."""

    def finish(self, read: Tensor, x: Tensor) -> Tensor:
        """What a head read, `[batch, heads, tokens, value dim]`, as it goes to the out part; `x [batch, tokens, width]`
        is the layer's input."""
        return read

    @property
    def finished_dim(self) -> int | None:
        """The width that `finish` gives a head; None where it leaves it."""
        return None


class Out(LayerPart, ABC):
    """From what the heads read back to the width of a token."""

    @abstractmethod
    def build(self, dims: Dims, heads: int, head_dim: int) -> nn.Module:
        """Its trainable module: (read [batch, heads, tokens, head dim], x [batch, tokens, width]) -> as x."""


class Mix(LayerPart, ABC):
    """How what came before is read: over pairs of tokens, or from a running state.

    Its forms give the same numbers: `parallel` of a whole text, `chunk` of some tokens after a state, `step` of one
    token after a state, and `plain`, the paper's equation for one head of one text at a time.
    usual: parts that its paper has it with, where a sentence names none of their slot.
    turns: whether queries and keys may be turned by their positions before it.
    """

    usual: ClassVar[str] = ""
    turns: ClassVar[bool] = True

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        """Its trainable module: x [batch, tokens, width] -> its gates by name, [batch, heads, tokens, ...]."""
        return NoGates()

    def shown(self, streams: Streams, module: nn.Module, x: Tensor) -> Streams:
        """The streams with what its module makes of the layer's input `x`."""
        return replace(streams, gates=module(x))

    @abstractmethod
    def empty(self, streams: Streams) -> State:
        """The state before the first token of texts with such streams."""

    @abstractmethod
    def chunk(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        """What the new tokens read, [batch, heads, tokens, value dim], and the state after them."""

    @abstractmethod
    def step(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        """`chunk` of one token, without what only many tokens need."""

    @abstractmethod
    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        """Bytes of its state after `tokens` tokens of one sequence, of streams with `element` bytes an element."""

    @abstractmethod
    def alone(self, lane: Lane) -> Tensor:
        """What one head reads of one text, [tokens, value dim], as the paper writes it."""

    def parallel(self, streams: Streams) -> Tensor:
        """What the tokens of whole texts read."""
        return self.chunk(streams, self.empty(streams))[0]

    def plain(self, streams: Streams) -> Tensor:
        """`parallel`, a head and a text at a time, in float64."""
        rows = [
            torch.stack([self._texts(streams, row, head) for head in range(heads_of(streams))])
            for row in range(len(streams.segments))
        ]
        return torch.stack(rows).to(streams.q.dtype)

    def _texts(self, streams: Streams, row: int, head: int) -> Tensor:
        """What one head reads of the texts of one batch row, one after the other."""

        def own(one: Tensor) -> Tensor:
            return one[row, head * one.shape[1] // heads_of(streams)].double()

        q, k, v = own(streams.q), own(streams.k), own(streams.v)
        gates = {name: own(one) for name, one in streams.gates.items()}
        learned = {name: one[head * len(one) // heads_of(streams)].double() for name, one in streams.learned.items()}
        counts = streams.segments[row].unique_consecutive(return_counts=True)[1].tolist()
        read, start = [], 0
        for count in counts:
            place = slice(start, start := start + count)
            cut = {name: one[place] for name, one in gates.items()}
            sizes = (streams.scale, head, heads_of(streams))
            read.append(self.alone(Lane(q[place], k[place], v[place], cut, *sizes, learned, streams.k.shape[1])))
        return torch.cat(read)


class NoGates(nn.Module):
    """The gates of a mix that has none."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """No gates."""
        return {}


def heads_of(streams: Streams) -> int:
    """Heads of what is read."""
    return max(streams.q.shape[1], streams.v.shape[1])


def repeated(one: Tensor, heads: int) -> Tensor:
    """`[batch, few, ...]` -> `[batch, heads, ...]`: each head serves its neighbours."""
    return one if one.shape[1] == heads else one.repeat_interleave(heads // one.shape[1], dim=1)
