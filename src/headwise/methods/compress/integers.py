"""Keys and values as integers of different widths: keys decide where attention goes and need more bits."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.errors import HeadwiseError
from headwise.methods.compress import Rounded
from headwise.registry import Card, register

WIDTHS = (16, 8, 4, 2)


@register("compress", "int")
@dataclass(frozen=True)
class Integers(Rounded):
    """`int(key=4, value=2)`; 16 bits leave keys or values as they are.

    key, value: bits per element, 16, 8, 4 or 2.
    group: channels that share a scale and a minimum at 4 and 2 bits: 16, 32, 64 or 128.
    """

    key: int = 4
    value: int = 4

    card = Card(
        title="Integer cache, keys and values apart",
        paper="none: rounding per token, as in most serving engines; that keys need more bits than values is observed "
        "in More for Keys, Less for Values, arXiv 2502.15075",
        frees_memory=True,
        chunking="approximate",
        forgets="differences below half a step of each group of channels",
    )

    def __post_init__(self) -> None:
        for knob in ("key", "value"):
            if getattr(self, knob) not in WIDTHS:
                raise HeadwiseError(f"{knob} must be 16, 8, 4 or 2 bits, got {getattr(self, knob)}")
        super().__post_init__()

    @property
    def bits(self) -> tuple[int, int]:
        """As asked for."""
        return self.key, self.value
