"""Keys and values of KV heads as a cache holds them: in pages, of any element type, each head with its own length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.where import Where


@dataclass(frozen=True)
class Side:
    """Keys or values: planes `[pages, page, plane width]` as `codec` writes them, of vectors of `width` channels.

    frames `[h, 2, width]`: where the codec wrote S H ((x - centre) * stretch) of each vector x (native/frame.hpp), the
    centre and stretch of every lane, by channel; None where it wrote the vectors themselves.
    """

    codec: str
    width: int
    planes: dict[str, Tensor]
    frames: Tensor | None = None


@dataclass(frozen=True)
class Paged:
    """What h lanes hold. Lane i owns the logical pages from starts[i] on, and the first lengths[i] tokens in them.

    table: physical page by logical page, int64; None where they are equal. page: tokens of a page.
    dense: the same as tensors, decoded: (lanes, k `[lanes, n, d]`, v `[lanes, n, e]`) of neighbouring lanes in order.
    skip: channels of `values` before those that are read, as where values are the last channels of their keys.
    """

    keys: Side
    values: Side
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    table: Tensor | None
    page: int
    dense: Callable[[], list[tuple[slice, Tensor, Tensor]]]
    skip: int = 0

    def check(self, q: Tensor, where: Where) -> None:
        """Raise ShapeError or HeadwiseError unless queries `[h, g, t, d]` and `where` fit."""
        if q.dim() != 4 or q.shape[0] != len(self.lengths) or q.shape[3] != self.keys.width:
            raise ShapeError(
                f"queries {list(q.shape)} do not fit {len(self.lengths)} lanes of keys of {self.keys.width} channels"
            )
        if where.heads is not None and len(set(self.lengths)) > 1:
            raise HeadwiseError(f"{type(where).__name__} holds lists by head; give it lanes of equal length")
        for length in set(self.lengths):
            where.check(q.shape[2], length)
