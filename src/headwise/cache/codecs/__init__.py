"""How a page is written. A codec turns vectors into planes (named tensors of fixed width) and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from headwise.errors import HeadwiseError, did_you_mean
from headwise.rooms import Room


class Codec(Protocol):
    """What a store asks of a codec. Every token is encoded on its own, so that any token can leave."""

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        """Width and element type of each plane for vectors of `width` elements of `dtype`."""
        ...

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Planes `[..., n, plane width]` of `x [..., n, width]`."""
        ...

    def decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """`[..., n, width]` in `dtype` from the planes; without a copy where the codec keeps values as they are."""
        ...


@dataclass(frozen=True)
class Family:
    """Codecs that a file offers. pattern: of their names. make: the codec of a name that fits. names: some of them, for
    lists and tests."""

    pattern: str
    make: Callable[[re.Match[str]], Any]
    names: tuple[str, ...]


CODECS: Room[Family] = Room("codec", "headwise.cache.codecs")


@cache
def codec(name: str) -> Any:
    """The codec called `name`: a `Codec`, or one whose tokens share numbers (see `sharing`)."""
    for family in CODECS.all().values():
        if (found := re.fullmatch(family.pattern, name)) is not None:
            return family.make(found)
    raise HeadwiseError(f"no codec is called '{name}'; {did_you_mean(name, names())}")


def names() -> list[str]:
    """Names of codecs, some of each family."""
    return [name for family in CODECS.all().values() for name in family.names]


def bytes_per_token(name: str, width: int, dtype: torch.dtype) -> int:
    """Bytes that one vector of `width` elements takes under the codec `name`."""
    return sum(size * kind.itemsize for size, kind in codec(name).planes(width, dtype).values())
