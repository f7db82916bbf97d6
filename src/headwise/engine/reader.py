"""The short way of a decoding step: what several stores hold is read in place, by one kernel call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from headwise.attention.attend import prepare_pages
from headwise.cache.kv_store import KVStore
from headwise.engine.lately import Lately
from headwise.forms import Attended, Full, Where
from headwise.kernels import ops
from headwise.kernels.request import Part, Prepared, Ready

if TYPE_CHECKING:
    from headwise.engine.read import Reading


class Reader:
    """Reads the pools of stores by one kernel. That it takes them, and where they lie, is found once and then known
    until a pool lies elsewhere, as it does after an eviction.

    heads: of each store, which of a layer's KV heads its lanes are of.
    """

    def __init__(self, stores: Sequence[KVStore], heads: Sequence[Sequence[int]]) -> None:
        order = sorted(head for own in heads for head in own)
        self._places = {head: place for place, head in enumerate(order)}
        self._parts = [
            (pool, own, level)
            for store, own in zip(stores, heads, strict=True)
            for level, pool in enumerate(store.pools())
        ]
        self._pools = [pool for pool, _, _ in self._parts]
        self._levelled = any(level for _, _, level in self._parts)
        self._found: tuple[object, ...] = ()  # what the kernel was found for
        self._kernel: Prepared | None = None
        self._lately: Lately | None = None  # what of the parts a window shows, as they lie now

    def read(self, reading: Reading, q: torch.Tensor) -> Attended | None:
        """Attention of new tokens q [b * h, g, t, d], those of a row together, over all that the stores hold, them
        included; None where they are not `ready`."""
        ready = self.ready(reading, q)
        return None if ready is None else self.whole(reading, ready.run()[0])

    def whole(self, reading: Reading, attended: Attended) -> Attended:
        """What a call that was `ready` gave, once sinks have joined it."""
        return attended if reading.sinks is None else reading.whole(attended, range(len(self._places)))

    def ready(self, reading: Reading, q: torch.Tensor) -> Ready | None:
        """The kernel's call by which `read` reads, to be run before the stores change; None for padded rows, trees,
        rows that are not as far in their chunks, and where no kernel reads the pages in place."""
        left = -1 if reading.window is None else reading.window - 1
        if reading.chunked:
            places = {(seen - 1) % (left + 1) for seen in reading.step.seen}
            if q.shape[2] > 1 or len(places) > 1:
                return None
            left = places.pop()
        if reading.step.padded or reading.tree is not None or (kernel := self._kernel_for(reading, q)) is None:
            return None
        lefts: list[int] | None = [left] * len(self._parts)
        if left >= 0 and self._levelled:
            lefts = self._shown(reading, kernel, q.shape[2], left)
        if lefts is None:
            return None
        reading.ledger.operations[reading.step.phase, ops.attend_pages.name, kernel.backend] += len(self._parts)
        return kernel.over(q, q.shape[2] > 1 or left >= 0, lefts)

    def read_some(self, reading: Reading, q: torch.Tensor, where: Where) -> Attended | None:
        """The same as `where` shows, over lanes of equal length of a single pool; before sinks join, as more may be
        read beside it."""
        if self._levelled or (kernel := self._kernel_for(reading, q)) is None:
            return None
        where.check(q.shape[2], self._pools[0].lengths[0])
        if (attended := kernel(q, where)) is not None:
            reading.ledger.operations[reading.step.phase, ops.attend_pages.name, kernel.backend] += 1
        return attended

    def _kernel_for(self, reading: Reading, q: torch.Tensor) -> Prepared | None:
        """The kernel for queries q [b * h, g, t, d], told how much there is to read; None where there is none."""
        if (q.requires_grad and torch.is_grad_enabled()) or q.stride(3) != 1:
            return None
        asked = (q.dtype, q.shape, reading.scoring, [pool.pages.version for pool in self._pools])
        if asked != self._found:
            where: Where = Full() if q.shape[2] == 1 else reading.sees
            parts = [
                Part(pool.paged(0, pool.shape.lanes), self._lanes(heads, pool.shape.lanes), level)
                for pool, heads, level in self._parts
            ]
            self._kernel = prepare_pages(q, parts, where, reading.scoring)  # if None, the long way says why
            self._found, self._lately = asked, None
        if self._kernel is not None:
            for part, pool in enumerate(self._pools):
                self._kernel.lengthen(part, pool.lengths)
        return self._kernel

    def _shown(self, reading: Reading, kernel: Prepared, tokens: int, left: int) -> list[int] | None:
        """By part, how many entries before its newest one a query sees whose window reaches `left` tokens back, over
        tokens of several levels; parts of which it sees none are hidden. None where lanes differ, and for more
        tokens."""
        if tokens > 1:
            return None
        if self._lately is None:
            self._lately = Lately(self._pools, reading.step.seen)
        counts = self._lately.counts(left + 1, reading.step.seen)
        if counts is None:
            return None
        for part, (pool, count) in enumerate(zip(self._pools, counts, strict=True)):
            if not count:
                kernel.lengthen(part, [0] * pool.shape.lanes)
        return [count - 1 for count in counts]

    def _lanes(self, heads: Sequence[int], lanes: int) -> tuple[int, ...]:
        """Where the lanes of a store are among those of all."""
        rows = range(lanes // len(heads))
        return tuple(row * len(self._places) + self._places[head] for row in rows for head in heads)
