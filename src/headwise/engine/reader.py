"""The short way of a decoding step through a group of heads: what it holds is read in place, by one kernel call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headwise.attention.attend import prepare_pages
from headwise.cache.paged import PagedStore
from headwise.cache.pages import Pages
from headwise.forms import Attended, Causal, Full, Where
from headwise.kernels import ops
from headwise.kernels.request import Prepared

if TYPE_CHECKING:
    from headwise.engine.read import Reading


class Reader:
    """Reads the pages of one store by the native kernel. That it takes them, and where they lie, is found once and then
    known until the pool lies elsewhere, as it does after an eviction."""

    def __init__(self, store: PagedStore) -> None:
        self._store = store
        self._pages: Pages | None = None  # what the kernel was found for, with the rest of it
        self._found: tuple[object, ...] = ()
        self._kernel: Prepared | None = None

    def read(self, reading: Reading, q: torch.Tensor) -> Attended | None:
        """Attention of new tokens q [lanes, g, t, d] over all that the store holds, them included; None of a prompt or
        padded rows, and where no kernel reads the pages in place."""
        if reading.step.phase == "prefill" or reading.step.padded or (kernel := self._ready(reading, q)) is None:
            return None
        reading.ledger.operations["decode", ops.attend_pages.name, kernel.backend] += 1
        if reading.window is None:
            return kernel.over(q, q.shape[2] > 1)
        return kernel.over(q, True, reading.window - 1)

    def read_some(self, reading: Reading, q: torch.Tensor, where: Where) -> Attended | None:
        """The same as `where` shows, over lanes of equal length."""
        if (kernel := self._ready(reading, q)) is None or not kernel.takes(where):
            return None
        where.check(q.shape[2], self._store.pages.lengths[0])
        reading.ledger.operations[reading.step.phase, ops.attend_pages.name, kernel.backend] += 1
        return kernel(q, where)

    def _ready(self, reading: Reading, q: torch.Tensor) -> Prepared | None:
        """The kernel for queries q [lanes, g, t, d], told how much there is to read; None where there is none."""
        pages = self._store.pages
        if (q.requires_grad and torch.is_grad_enabled()) or q.stride(3) != 1:
            return None
        asked = (pages.version, q.dtype, q.shape[1], q.shape[2], reading.scoring)
        if pages is not self._pages or asked != self._found:
            where: Where = Full() if q.shape[2] == 1 else Causal()
            paged = self._store.paged(0, len(pages.lengths))
            self._kernel = prepare_pages(
                q, [(paged, range(len(q)))], where, reading.scoring
            )  # if None, the long way says why
            self._pages, self._found = pages, asked
        if self._kernel is not None:
            self._kernel.lengthen(0, pages.lengths)
        return self._kernel
