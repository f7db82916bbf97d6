"""The slots of attention over pairs of tokens: positions, scores and normalisations, and what each is shown.

A part's parallel form is shown a `Block` of queries with all keys, its plain form a `Row`, one query of one head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layers.base import Dims, LayerPart, Streams, StreamShape
from headwise.shapes import Rope


@dataclass(frozen=True)
class Block:
    """Some queries and all keys that there are, of every head: what scores and weights are made of.

    q [batch, heads, queries, key dim], k [batch, heads, keys, key dim]. seen [batch, 1, queries, keys]: whether a query
    sees a key. distance [queries, keys]: how many tokens a key is before a query, below 0 for those after it.
    gates: of the queries, [batch, heads, queries, ...]. learned [heads, ...]. scale: of a product.
    """

    q: Tensor
    k: Tensor
    seen: Tensor
    distance: Tensor
    gates: Mapping[str, Tensor]
    learned: Mapping[str, Tensor]
    scale: float

    @property
    def products(self) -> Tensor:
        """The scaled products of queries and keys, [batch, heads, queries, keys]."""
        return (self.q @ self.k.transpose(-1, -2)) * self.scale

    @property
    def count(self) -> Tensor:
        """How many keys a query sees, [batch, 1, queries, 1]."""
        return self.seen.sum(-1, keepdim=True).to(self.q.dtype)

    def of_heads(self, name: str) -> Tensor:
        """A learned number a head, [heads, 1, 1], that scores can be multiplied with."""
        return self.learned[name][:, None, None]


@dataclass(frozen=True)
class Row:
    """One query [key dim] of one head and the keys [keys, key dim] that it sees, itself last; gates and learned are
    its own. What the plain forms are made of.

    far: how many tokens each key is before the query, where these are not all keys.
    """

    q: Tensor
    k: Tensor
    gates: Mapping[str, Tensor]
    learned: Mapping[str, Tensor]
    scale: float
    head: int
    heads: int
    far: tuple[int, ...] = ()

    @property
    def distances(self) -> Sequence[int]:
        """How many tokens each key is before the query."""
        return self.far or range(len(self.k) - 1, -1, -1)


class PairPart(LayerPart):
    """Base of what attention over pairs is made of: positions, scores and normalisations."""

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        """What it learns that no input changes: first values by name, [heads, ...]."""
        return {}

    def gates(self, dims: Dims, shape: StreamShape) -> dict[str, nn.Module]:
        """What it makes of the layer's input: modules by name, x [batch, tokens, width] -> [batch, heads, tokens]."""
        return {}


class Position(PairPart):
    """How places enter: by turning queries and keys, or by what is added to the score of a pair."""

    turns: ClassVar[bool] = False  # whether `turn` does anything
    adds: ClassVar[bool] = False  # whether `bias` says something; a running state has no pairs to add it to

    def turn(self, streams: Streams, positions: Tensor) -> Streams:
        """The streams with queries and keys at `positions [batch, tokens]`."""
        return streams

    def rotation(self, channels: int) -> Rope | None:
        """How it turns keys of so many channels; None where it does not."""
        return None

    def bias(self, block: Block) -> Tensor:
        """What is added to the scores of a block, of a shape that spreads to [batch, heads, queries, keys]."""
        return torch.zeros_like(block.distance, dtype=torch.float32)

    def alone(self, row: Row) -> Tensor:
        """What is added to the scores of one query [keys], as the paper writes it."""
        return row.k.new_zeros(len(row.k))


class Score(PairPart, ABC):
    """How much a query asks of a key. numbers: how many it holds for a pair while it computes."""

    numbers: ClassVar[int] = 1

    @abstractmethod
    def scores(self, block: Block) -> Tensor:
        """The scores of a block, [batch, heads, queries, keys]."""

    @abstractmethod
    def alone(self, k: Tensor, row: Row) -> Tensor:
        """The score of one key [dim] for the query of `row`, as the paper writes it."""


class Normalise(PairPart, ABC):
    """How the scores of a query become weights. weighs: whether `values` does anything."""

    weighs: ClassVar[bool] = False

    @abstractmethod
    def weights(self, scores: Tensor, block: Block) -> Tensor:
        """`scores [batch, heads, queries, keys]` -> weights of that shape, 0 where `block.seen` is not."""

    @abstractmethod
    def alone(self, scores: Tensor, row: Row) -> Tensor:
        """The weights of one query whose scores [keys] are all of what it sees, as the paper writes it."""

    def values(self, v: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        """The values `v [..., tokens, dim]` as they are stored; gates [..., tokens]."""
        return v


class PairWeights(nn.Module):
    """What the parts of attention over pairs learn: tensors [heads, ...], and gates made of the input."""

    def __init__(self, learned: Mapping[str, Tensor], gates: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.learned = nn.ParameterDict({name: nn.Parameter(one) for name, one in learned.items()})
        self.by_name = nn.ModuleDict(gates)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The gates of `x [batch, tokens, width]`."""
        return {name: module(x) for name, module in self.by_name.items()}
