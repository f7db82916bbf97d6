"""Compress: in what form kept keys and values lie. A method names the codecs of `headwise.cache.codecs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headwise.attention.view import View
from headwise.errors import HeadwiseError
from headwise.methods.rounding import plain_asymmetric, plain_projected, plain_symmetric
from headwise.registry import Card

GROUPS = (16, 32, 64, 128)
INNER = {16: "plain", 8: "int8", 4: "int4/128"}
PAGE = 16  # tokens; memory is taken by whole pages
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Compress:
    """Base: which codecs write the keys and the values of a head, at one level of precision or several."""

    card: ClassVar[Card]
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def span(self) -> int | None:
        """Layers whose tokens lie together, all heads of each; None: every head's tokens lie on their own."""
        return None

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Names in `headwise.cache.codecs` for keys and for values, by level; new tokens are at the first."""
        raise NotImplementedError

    @property
    def remembers(self) -> int:
        """Last queries kept between steps, for `level` to look at."""
        return 0

    def level(self, view: View) -> torch.Tensor:
        """The level [h, n] at which each stored token is to be, asked after each eviction; none goes back."""
        return torch.zeros_like(view.positions)

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """Tokens by level of a head with `settled` tokens at the last settling and `later` ones since; at most."""
        return (settled + later,)

    def plain(self, view: View) -> Pair:
        """What the cache gives back of keys [h, n, d] and values [h, n, e] as they came, element by element.

        view.seen: tokens that had been seen when the levels were asked for, once; later ones are as they came. The
        heads of a view are all those that lie together, layer after layer, where a method has a `span`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Rounded(Compress):
    """Base of the methods that round every token's vectors on their own.

    group: channels that share a scale and a minimum at 4 and 2 bits: 16, 32, 64 or 128.
    """

    group: int = 64

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise HeadwiseError(
                f"group must be one of {', '.join(map(str, GROUPS))} channels, got {self.group}; bits are named, as in "
                "int(key=8, value=4)"
            )

    @property
    def bits(self) -> tuple[int, int]:
        """Bits per element of keys and of values: 16 (as they are), 8, 4 or 2."""
        raise NotImplementedError

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


@dataclass(frozen=True)
class Projected(Compress):
    """Base of the methods that write vectors as coefficients over the strongest singular directions of the first ones.

    key, value: directions, as a share of a vector's width; 1 leaves keys or values as they are.
    bits: of a coefficient, 16 (in the cache's own type), 8 or 4.
    window: most recent tokens left as they are; up to 64 decode steps more.
    """

    key: float = 0.5
    value: float = 0.75
    bits: int = 16
    window: int = 32

    def __post_init__(self) -> None:
        if not 0 < min(self.key, self.value) < 1 or max(self.key, self.value) > 1:
            raise HeadwiseError(
                f"key and value must be above 0 and at most 1, and one of them below 1, got {self.key} and {self.value}"
            )
        if self.bits not in INNER:
            raise HeadwiseError(f"bits must be 16, 8 or 4, got {self.bits}")
        if self.window < 0:
            raise HeadwiseError(f"window must be 0 or more tokens, got {self.window}")

    def codecs(self, keys: str, values: str) -> tuple[tuple[str, str], ...]:
        """Levels: plain, then projected by codecs of these kinds."""
        key, value = f"{keys}{self.key}/{INNER[self.bits]}", f"{values}{self.value}/{INNER[self.bits]}"
        return ("plain", "plain"), (key if self.key < 1 else "plain", value if self.value < 1 else "plain")

    def level(self, view: View) -> torch.Tensor:
        """1 [h, n] for what the window has passed; the cache refuses where that would take more than it saves."""
        return (view.positions < view.seen - self.window).long()

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """All beyond the window."""
        passed = max(0, settled - self.window)
        return settled - passed + later, passed

    def _projected(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Keys [n, d] and values [n, e] as they come back; as they are where that would not pay."""
        widths = (keys.shape[1], values.shape[1])
        if not self._pays(len(keys), widths, keys.dtype.itemsize):
            return keys, values
        shares = ((keys, self.key), (values, self.value))
        key, value = (x if s == 1 else plain_projected(x, _rank(s, x.shape[1]), self.bits) for x, s in shares)
        return key, value

    def _pays(self, count: int, widths: tuple[int, int], size: int) -> bool:
        """Whether the bytes of `count` tokens, directions included, are fewer than they were in elements of `size`."""
        pages, took, takes = -(-count // PAGE), 0, 0
        for share, width in zip((self.key, self.value), widths, strict=True):
            rank, took = _rank(share, width), took + width * size
            rounded = {16: rank * size, 8: rank + 2, 4: rank // 2 + 4 * -(-rank // 128)}
            takes += pages * PAGE * (rounded[self.bits] if share < 1 else width * size)
            takes += width * rank * size if share < 1 else 0
        position = 4
        return takes + pages * PAGE * position < (-(-max(0, count - PAGE) // PAGE)) * PAGE * (took + position)


def _rank(share: float, width: int) -> int:
    """Directions of vectors of `width` channels, an even number."""
    return max(2, 2 * round(share * width / 2))
