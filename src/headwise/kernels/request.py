"""What a backend is asked when it is to compute attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Attended, Full, Paged, Scoring, Side, Where
from headwise.shapes import want

EDITED = "edited scores: it computes the model's own alone"


@dataclass(frozen=True)
class Request:
    """One call of attention: `q [h, g, t, d]` over `k [h, n, d]`, `v [h, n, e]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    where: Where
    scoring: Scoring

    def check(self) -> None:
        """Raise HeadwiseError unless shapes, types, devices and `where` agree."""
        q, k, v = self.q, self.k, self.v
        if q.dim() != 4 or k.dim() != 3 or v.dim() != 3 or q.shape[::3] != k.shape[::2] or k.shape[:2] != v.shape[:2]:
            sizes = want(q, "h g t d")
            sizes = want(k, "h n d", h=sizes["h"], d=sizes["d"])
            want(v, "h n e", h=sizes["h"], n=sizes["n"])
        if not q.numel() or not v.shape[2]:
            raise ShapeError(f"attention of no queries or no width: q is {list(q.shape)}, v is {list(v.shape)}")
        if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
            raise HeadwiseError(f"q, k and v must share one floating type, got {q.dtype}, {k.dtype}, {v.dtype}")
        if not q.device == k.device == v.device:
            raise HeadwiseError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
        if self.where.heads not in (None, q.shape[0]):
            raise ShapeError(f"{type(self.where).__name__} has lists for {self.where.heads} heads, q has {q.shape[0]}")
        self.where.check(q.shape[2], k.shape[1])


@dataclass(frozen=True)
class PagesRequest:
    """One call of attention over pages as a cache holds them: `q [h, g, t, d]`, the h lanes as long as they are."""

    q: Tensor
    paged: Paged
    where: Where
    scoring: Scoring

    def check(self) -> None:
        """Raise ShapeError or HeadwiseError unless queries and `where` fit the pages."""
        self.paged.check(self.q, self.where)


@dataclass(frozen=True)
class Part:
    """Pages of some of the queries' lanes, `lanes`. level: 0 where they hold the newest tokens of these lanes; pages of
    another level hold earlier tokens of lanes that level 0 has as well, all of which the queries may see."""

    paged: Paged
    lanes: tuple[int, ...]
    level: int = 0


@dataclass(frozen=True)
class PartsRequest:
    """Calls of attention to come, over pages in parts: `q [h, g, t, d]`, all of whose h lanes the parts of level 0 have
    together, each once. where: what of level 0 is seen."""

    q: Tensor
    parts: tuple[Part, ...]
    where: Where
    scoring: Scoring

    def each(self) -> Iterator[PagesRequest]:
        """The parts as requests of their own, whose queries are the first so many lanes, as all lie alike."""
        for part in self.parts:
            where = Full() if part.level else self.where
            yield PagesRequest(self.q[: len(part.lanes)], part.paged, where, self.scoring)

    def check(self) -> None:
        """Raise ShapeError or HeadwiseError unless queries and `where` fit the pages of every part."""
        for request in self.each():
            request.check()


@dataclass(frozen=True)
class PoolRequest:
    """Tokens to come of vectors of `dtype`, to be written to the planes of a pool `[pages, page, width]`: as keys, as
    values, and `beside` them their positions, masses and notes."""

    keys: Side
    values: Side
    beside: dict[str, Tensor]
    dtype: torch.dtype


class Writer(Protocol):
    """Writes new tokens to a pool that lies where it did when this was made."""

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, slots: list[int]) -> None:
        """Keys `[lanes, t, d]`, values `[lanes, t, e]` at positions `[lanes, t]`, those of a lane from its slot on."""

    def of(self, keys: Tensor, values: Tensor, places: Sequence[int]) -> None:
        """From now on the call is one that others make, of what lies in keys `[all lanes, t, d]` and values, of which
        the pool's lanes are those at `places`."""

    def at(self, positions: Tensor, slots: list[int]) -> None:
        """Where they are to be written; positions stay as they are until they were."""


class Ready(Protocol):
    """A call of attention that is told all it needs."""

    @property
    def backend(self) -> str:
        """Whose it is."""

    def run(self, *others: Any) -> list[Attended]:
        """What this and other calls of the same backend give, by one call of a kernel: each what it gives alone, bit
        for bit."""

    def whole(self) -> Attended:
        """What it gave, once it was made."""


class Prepared(Protocol):
    """Attention over pages that lie where they did when it was made; told before a call how much there is to read."""

    @property
    def backend(self) -> str:
        """Whose it is."""

    def lengthen(self, part: int, lengths: list[int]) -> None:
        """The lanes of a part hold so many tokens now."""

    def reach(self, part: int, left: int) -> None:
        """A query of a call that is made again sees `left` keys of a part before the newest one; -1: all."""

    def __call__(self, q: Tensor, where: Where) -> Attended | None:
        """Attention of `q [h, g, t, d]` as `where` shows; None where it does not read by such a form."""

    def over(self, q: Tensor, causal: bool, lefts: Sequence[int] | None = None, out: Tensor | None = None) -> Ready:
        """The same over everything, or what of level 0 is not after a query; of each part the number of keys in `lefts`
        before the newest one of a query, and that one, where not -1. out: where the result goes, `[h, g, t, e]` without
        gaps. To be run before this is told anything else."""
