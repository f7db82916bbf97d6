"""The slot of trained patterns: which of the keys before it a query reads, and how its weights are made of them.

A pattern's parallel form is shown a `Field`, its plain form a `Lone`, one query of one head. Places are counted in a
token's own text, so that padding and packed texts change nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Normalise, PairPart, Row


@dataclass(frozen=True)
class Field:
    """Some queries and the keys that are held, as patterns are shown them.

    block: the queries and keys; its `seen` is whatever causal attention would see. v [batch, heads, keys, value dim].
    asks [batch, 1, queries, 1] and places [batch, heads or 1, 1, keys]: where a query and a key stand in their texts.
    key_heads: heads of keys and values, of which each serves neighbouring heads. score: of a block's pairs, with what
    the position adds to them.
    """

    block: Block
    v: Tensor
    asks: Tensor
    places: Tensor
    key_heads: int
    score: Callable[[Block], Tensor]
    normalise: Normalise

    @property
    def owners(self) -> Tensor:
        """The head of keys that each head reads, [heads, 1, 1]."""
        heads = self.block.k.shape[1]
        return (torch.arange(heads, device=self.v.device) * self.key_heads // heads)[:, None, None]

    def weights(self, seen: Tensor, bias: Tensor | None = None) -> Tensor:
        """The weights of the keys `seen [batch, heads or 1, queries, keys]`, 0 elsewhere; `bias` is added to scores."""
        narrowed = replace(self.block, seen=seen & self.block.seen)
        scores = self.score(narrowed)
        return self.normalise.weights(scores if bias is None else scores + bias, narrowed)


@dataclass(frozen=True)
class Lone:
    """One query, the last of the keys `row.k [keys, dim]`, with the values `v [keys, dim]` of these.

    key_head: the head of keys and values that the query's head reads, of `key_heads`. scores: of some keys, by their
    places.
    weigh: the weights of some keys, by their places, with numbers that are added to their scores or None; [keys].
    """

    row: Row
    v: Tensor
    key_head: int
    key_heads: int
    scores: Callable[[Sequence[int]], Tensor]
    weigh: Callable[[Sequence[int], Tensor | None], Tensor]

    @property
    def place(self) -> int:
        """Where the query stands in its text."""
        return len(self.row.k) - 1


class Pattern(PairPart):
    """Which keys a query reads.

    forgets: whether keys that no later query can read are given up, see `kept`.
    softmax_only: whether it makes its weights itself, so that no other normalisation can be had beside it.
    """

    forgets: ClassVar[bool] = False
    softmax_only: ClassVar[bool] = False

    @abstractmethod
    def seen(self, field: Field) -> Tensor:
        """Whether a query reads a key, [batch, heads or 1, queries, keys], of those that it sees causally."""

    @abstractmethod
    def reads(self, lone: Lone) -> Sequence[int]:
        """The places of the keys that one query reads, as the paper writes it."""

    def weights(self, field: Field) -> Tensor:
        """The weights of a field, [batch, heads, queries, keys]."""
        return field.weights(self.seen(field))

    def alone(self, lone: Lone) -> Tensor:
        """The weights [keys] of one query, as the paper writes it."""
        return lone.weigh(self.reads(lone), None)

    def fixed(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        """What it holds that no gradient moves, by name, [heads, ...]; it is found among what is learned."""
        return {}

    def kept(self, places: Tensor, last: Tensor, values: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Of a pattern that forgets: which held keys a later query may read, [batch, key heads, keys]; all of them
        where it does not.

        places [batch, key heads, keys], those of other texts below 0; last [batch, 1, 1]: where the newest token
        stands; values [batch, key heads, keys, dim].
        """
        return torch.ones_like(places, dtype=torch.bool)

    def stored(self, tokens: int, key_heads: int) -> int:
        """How many keys of a text of `tokens` tokens the head of keys holds that holds most."""
        places = torch.arange(tokens).expand(1, key_heads, -1)
        return int(self.kept(places, torch.tensor([[[tokens - 1]]]), places[..., None], {}).sum(-1).max())


def owners(places: Tensor) -> Tensor:
    """The heads of keys of `places [batch, key heads, keys]`, [key heads, 1]."""
    return torch.arange(places.shape[1], device=places.device)[:, None]
