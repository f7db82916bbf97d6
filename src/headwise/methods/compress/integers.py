"""Keys and values as integers of different widths: keys decide where attention goes and need more bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headwise.methods.compress import Rounded
from headwise.registry import Card, register


@register("compress", "int")
@dataclass(frozen=True)
class Integers(Rounded):
    """`int(key=4, value=2)`; 16 bits leave keys or values as they are.

    key, value: bits per element, 16, 8, 4 or 2.
    group: channels that share a scale and a minimum at 4 and 2 bits: 16, 32, 64 or 128.
    """

    key: Literal[16, 8, 4, 2] = 4
    value: Literal[16, 8, 4, 2] = 4

    card = Card(
        title="Integer cache, keys and values apart",
        paper="none: rounding per token, as in most serving engines; that keys need more bits than values is observed "
        "in More for Keys, Less for Values, arXiv 2502.15075",
        frees_memory=True,
        chunking="approximate",
        forgets="differences below half a step of each group of channels",
    )

    @property
    def bits(self) -> tuple[int, int]:
        """As asked for."""
        return self.key, self.value
