"""Keys and values as 8-bit integers: half the memory of bfloat16, nearly nothing lost."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.attention.view import View
from headwise.methods.compress import Compress, Pair
from headwise.methods.rounding import plain_symmetric
from headwise.registry import Card, register


@register("compress", "int8")
@dataclass(frozen=True)
class Int8(Compress):
    """One float16 scale per token and head, for keys and for values."""

    card = Card(
        title="8-bit cache",
        paper="none: symmetric rounding per token, as in most serving engines",
        frees_memory=True,
        chunking="approximate",
        forgets="differences below 1/254 of the largest element of each vector",
    )

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """int8 for both."""
        return (("int8", "int8"),)

    def plain(self, view: View) -> Pair:
        """What keys [h, n, d] and values [h, n, e] become, element by element."""
        return plain_symmetric(view.keys), plain_symmetric(view.values)
