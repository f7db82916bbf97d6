"""The short way of a decoding step: what several stores hold is read in place, by one kernel call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from headwise.attention.attend import prepare_pages
from headwise.cache.paged import PagedStore
from headwise.forms import Attended, Causal, Full, Where
from headwise.kernels import ops
from headwise.kernels.request import Prepared

if TYPE_CHECKING:
    from headwise.engine.read import Reading


class Reader:
    """Reads the pages of stores by one kernel. That it takes them, and where they lie, is found once and then known
    until a pool lies elsewhere, as it does after an eviction.

    heads: of each store, which of the h KV heads its lanes are of; together all of them, each once.
    """

    def __init__(self, stores: Sequence[PagedStore], heads: Sequence[Sequence[int]]) -> None:
        self._stores, self._heads = stores, heads
        self._found: tuple[object, ...] = ()  # what the kernel was found for
        self._kernel: Prepared | None = None

    def read(self, reading: Reading, q: torch.Tensor) -> Attended | None:
        """Attention of new tokens q [b * h, g, t, d], those of a row together, over all that the stores hold, them
        included; None for padded rows, trees, rows that are not as far in their chunks, and where no kernel reads the
        pages in place."""
        left = -1 if reading.window is None else reading.window - 1
        if reading.chunked:
            places = {(seen - 1) % (left + 1) for seen in reading.step.seen}
            if q.shape[2] > 1 or len(places) > 1:
                return None
            left = places.pop()
        if reading.step.padded or reading.tree is not None or (kernel := self._ready(reading, q)) is None:
            return None
        reading.ledger.operations[reading.step.phase, ops.attend_pages.name, kernel.backend] += len(self._stores)
        attended = kernel.over(q, q.shape[2] > 1 or left >= 0, left)
        return attended if reading.sinks is None else reading.whole(attended, range(sum(map(len, self._heads))))

    def read_some(self, reading: Reading, q: torch.Tensor, where: Where) -> Attended | None:
        """The same as `where` shows, over lanes of equal length of a single store; before sinks join, as more may be
        read beside it."""
        if (kernel := self._ready(reading, q)) is None:
            return None
        where.check(q.shape[2], self._stores[0].pages.lengths[0])
        if (attended := kernel(q, where)) is not None:
            reading.ledger.operations[reading.step.phase, ops.attend_pages.name, kernel.backend] += 1
        return attended

    def _ready(self, reading: Reading, q: torch.Tensor) -> Prepared | None:
        """The kernel for queries q [b * h, g, t, d], told how much there is to read; None where there is none."""
        if (q.requires_grad and torch.is_grad_enabled()) or q.stride(3) != 1:
            return None
        asked = (q.dtype, q.shape, reading.scoring, [store.pages.version for store in self._stores])
        if asked != self._found:
            where: Where = Full() if q.shape[2] == 1 else Causal()
            parts = [
                (store.paged(0, store.shape.lanes), self._places(heads, store.shape.lanes))
                for store, heads in zip(self._stores, self._heads, strict=True)
            ]
            self._kernel = prepare_pages(q, parts, where, reading.scoring)  # if None, the long way says why
            self._found = asked
        if self._kernel is not None:
            for part, store in enumerate(self._stores):
                self._kernel.lengthen(part, store.pages.lengths)
        return self._kernel

    def _places(self, heads: Sequence[int], lanes: int) -> list[int]:
        """Where the lanes of a store are among those of all."""
        everything = sum(map(len, self._heads))
        return [row * everything + head for row in range(lanes // len(heads)) for head in heads]
