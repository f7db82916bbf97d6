"""Compressions that write vectors as coefficients over a few directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative, PositiveShare
from headwise.methods.compress import Compress, Pair
from headwise.methods.rounding import plain_projected

INNER = {16: "plain", 8: "int8", 4: "int4/128"}
PAGE = 16  # tokens; memory is taken by whole pages


@dataclass(frozen=True)
class Projected(Compress):
    """Base of the methods that write vectors as coefficients over the strongest singular directions of the first ones.

    key, value: directions, as a share of a vector's width; 1 leaves keys or values as they are.
    bits: of a coefficient, 16 (in the cache's own type), 8 or 4.
    window: most recent tokens left as they are; up to 64 decode steps more.
    """

    key: PositiveShare = 0.5
    value: PositiveShare = 0.75
    bits: Literal[16, 8, 4] = 16
    window: NonNegative = 32

    def conflict(self) -> str | None:
        if self.key == self.value == 1:
            return "key and value are both 1, which projects nothing; give one of them below 1"
        return None

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
