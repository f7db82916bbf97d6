"""Compress: in what form kept keys and values lie. A method names the codecs of `headwise.cache.codecs`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from headwise.attention.view import View
from headwise.methods import Method
from headwise.methods.rounding import plain_asymmetric, plain_symmetric

Group: TypeAlias = Literal[16, 32, 64, 128]  # channels, or tokens of a channel, that share a scale
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Compress(Method):
    """Base: which codecs write the keys and the values of a head, at one level of precision or several."""

    @property
    def span(self) -> int | None:
        """Layers whose tokens lie together, all heads of each; None: every head's tokens lie on their own."""
        return None

    @property
    @abstractmethod
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Names in `headwise.cache.codecs` for keys and for values, by level; new tokens are at the first."""

    @property
    def last_queries(self) -> int:
        """Last queries kept between steps, for `level` to look at."""
        return 0

    def level(self, view: View) -> torch.Tensor:
        """The level [h, n] at which each stored token is to be, asked after each eviction; none goes back."""
        return torch.zeros_like(view.positions)

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """Tokens by level of a head with `settled` tokens at the last settling and `later` ones since; at most."""
        return (settled + later,)

    @abstractmethod
    def plain(self, view: View) -> Pair:
        """What the cache gives back of keys [h, n, d] and values [h, n, e] as they came, element by element.

        view.seen: tokens that had been seen when the levels were asked for, once; later ones are as they came. The
        heads of a view are all those that lie together, layer after layer, where a method has a `span`.
        """


@dataclass(frozen=True)
class Rounded(Compress):
    """Base of the methods that round every token's vectors on their own.

    group: channels that share a scale and a minimum at 4 and 2 bits: 16, 32, 64 or 128.
    """

    group: Group = 64

    @property
    @abstractmethod
    def bits(self) -> tuple[int, int]:
        """Bits per element of keys and of values: 16 (as they are), 8, 4 or 2."""

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """The codecs of `bits`."""
        names = {16: "plain", 8: "int8", 4: f"int4/{self.group}", 2: f"int2/{self.group}"}
        return ((names[self.bits[0]], names[self.bits[1]]),)

    def plain(self, view: View) -> Pair:
        """What keys [h, n, d] and values [h, n, e] become, element by element."""
        key, value = (self._plain(x, bits) for x, bits in zip((view.keys, view.values), self.bits, strict=True))
        return key, value

    def _plain(self, vectors: torch.Tensor, bits: int) -> torch.Tensor:
        if bits == 16:
            return vectors
        if bits == 8:
            return plain_symmetric(vectors)
        rows = []
        for vector in vectors.double().flatten(0, 1).tolist():
            groups = [vector[i : i + self.group] for i in range(0, len(vector), self.group)]
            rows.append([x for group in groups for x in plain_asymmetric(group, bits)])
        return torch.tensor(rows).to(vectors.dtype).view_as(vectors)
