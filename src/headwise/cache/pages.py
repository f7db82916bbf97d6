"""Physical pages and per-lane page tables: which slot holds which token. Knows planes of bytes, not keys and values.

A lane is one KV head of one batch row. All lanes of a pool share one tensor per plane, `[pages, PAGE, width]`; a lane
owns the pages that its row of the table names, and fills them in order.
"""

from __future__ import annotations

import copy
import itertools
import math
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from headwise.cache.journal import Journal, Pool, Rows

PAGE = 16  # tokens per page
PART = 4096  # tokens moved at a time: they stay in the caches
HUGE = 2 << 20  # bytes of the memory pages that Linux has beside those of 4 KiB

Layout = dict[str, tuple[int, torch.dtype]]
Own = TypeVar("Own", bound="Pages")


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for new pages, not initialised: nothing may read a slot before it is written.

    In huge pages where Linux gives them: a rebuilt pool is new memory every time, and a selection reads far apart.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def copied(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in memory of their own, as `fresh` gives it."""
    return fresh(x.shape, x.dtype, x.device).copy_(x)


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens fill."""
    return -(-tokens // PAGE)


def _room(stored: int) -> int:
    """Tokens that a lane gets room for when it grows by a few: a sixteenth more, so that copying stays rare."""
    return max(PAGE, stored // 16)


_VERSIONS = itertools.count()  # of all pools: what was found of one place of one pool holds for no other


class Pages:
    """The pool of one store and its tables. version: a number that no other place of this or another pool has.

    In order (the state after every rebuild) lane i owns the pages right after those of lane i-1, so that reading
    neighbouring lanes of equal capacity is a view; any other order of pages is read by gathering.
    """

    def __init__(self, lanes: int, layout: Layout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.journal: weakref.ref[Journal] | None = None
        self.put_pool(*self._new_pool([0] * lanes), [0] * lanes)

    def _new_pool(self, capacities: list[int]) -> tuple[list[int], list[int], dict[str, torch.Tensor], None]:
        """Capacities, starts, planes and table of a pool in which lane i owns `capacities[i]` pages, in order."""
        starts = [0]
        for pages in capacities:
            starts.append(starts[-1] + pages)
        planes = {
            name: fresh((starts[-1], PAGE, width), dtype, self.device) for name, (width, dtype) in self.layout.items()
        }
        return capacities, starts, planes, None

    def put_pool(
        self,
        capacities: list[int],
        starts: list[int],
        planes: dict[str, torch.Tensor],
        table: torch.Tensor | None,
        lengths: list[int],
    ) -> None:
        """Let this be the pool. table: physical page by logical page; None while in order."""
        self._placing(planes, table)
        self.capacities, self.starts, self.planes, self.table, self.lengths = capacities, starts, planes, table, lengths

    def renew(self) -> None:
        """What was found of the pool as it lay, or beside it, holds no longer."""
        self.version = next(_VERSIONS)

    def _placing(self, planes: dict[str, torch.Tensor], table: torch.Tensor | None) -> None:
        """Note, before it is so, that the pool lies elsewhere, and the bytes of its real storages, tables included."""
        self.renew()
        held = sum(plane.untyped_storage().nbytes() for plane in planes.values())
        self._nbytes = held + (0 if table is None else table.untyped_storage().nbytes())

    def checkpoint(self) -> Journal:
        """A state to go back to while it is held; only the newest works."""
        return Journal(self)

    @property
    def _noting(self) -> Journal | None:
        """The journal of the newest checkpoint, while somebody holds it."""
        return None if self.journal is None else self.journal()

    def flat(self, name: str) -> torch.Tensor:
        """A plane by slots, [slots, width]."""
        return self.planes[name].flatten(0, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages, tables included."""
        return self._nbytes

    def slots(self, lane: int, entries: torch.Tensor) -> torch.Tensor:
        """Physical slots [m] (page * PAGE + offset) of the `entries [m]` of a lane."""
        entries = entries.to(self.device)
        page = self.starts[lane] + entries.div(PAGE, rounding_mode="floor")
        if self.table is not None:
            page = self.table[page]
        return page * PAGE + entries % PAGE

    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring lanes [first, last) of equal length and capacity, each readable as one tensor."""
        runs: list[tuple[int, int]] = []
        for lane, shape in enumerate(zip(self.lengths, self.capacities, strict=True)):
            if runs and shape == (self.lengths[runs[-1][0]], self.capacities[runs[-1][0]]):
                runs[-1] = (runs[-1][0], lane + 1)
            else:
                runs.append((lane, lane + 1))
        return runs

    def read(
        self, first: int, last: int, prefix: str | tuple[str, ...] = "", start: int = 0
    ) -> dict[str, torch.Tensor]:
        """Planes `[last - first, n - start, width]` of a run of lanes: a view while in order, else gathered.

        prefix: how the names of the planes begin that are wanted, one way or several. start: the first entry that is.
        """
        names = [name for name in self.planes if name.startswith(prefix)]
        if self.table is None:
            return {name: self.plane(name, first, last, start) for name in names}
        index = self._index(first, last, start)
        return {name: self.flat(name)[index] for name in names}

    def plane(self, name: str, first: int, last: int, start: int = 0) -> torch.Tensor:
        """One plane as `read` gives it."""
        if self.table is not None:
            return self.flat(name)[self._index(first, last, start)]
        plane = self.planes[name][self.starts[first] : self.starts[last]]
        lanes = plane.view(last - first, self.capacities[first] * PAGE, plane.shape[-1])
        return lanes[:, start : self.lengths[first]]

    def _index(self, first: int, last: int, start: int) -> torch.Tensor:
        """The slots [last - first, n - start] of a run of lanes."""
        entries = torch.arange(start, self.lengths[first], device=self.device)
        return torch.stack([self.slots(lane, entries) for lane in range(first, last)])

    def write(self, lane: int, entries: torch.Tensor, planes: dict[str, torch.Tensor]) -> None:
        """Replace some planes `[m, width]` of a lane's `entries [m]`."""
        if (journal := self._noting) is not None:
            journal.note_overwrite(lane, entries, list(planes))
        slots = self.slots(lane, entries)
        for name, plane in planes.items():
            self.flat(name)[slots] = plane

    def append(self, planes: dict[str, torch.Tensor], counts: list[int] | None = None) -> None:
        """Add tokens: planes `[lanes, t, width]`, of which lane i takes its last `counts[i]` (None: all)."""
        width = next(iter(planes.values())).shape[1]
        if counts is None and self._append_evenly(planes, width):
            return
        added = counts if counts is not None else [width] * len(self.lengths)
        wanted = [stored + more for stored, more in zip(self.lengths, added, strict=True)]
        if any(pages_for(n) > pages for n, pages in zip(wanted, self.capacities, strict=True)):
            self._grow(added)
            if counts is None and self._append_evenly(planes, width):
                return
        for lane, (stored, more) in enumerate(zip(self.lengths, added, strict=True)):
            slots = self.slots(lane, torch.arange(stored, stored + more, device=self.device))
            for name in self.planes:
                self.flat(name)[slots] = planes[name][lane, width - more :]
        self.lengths = wanted

    def _append_evenly(self, planes: dict[str, torch.Tensor], width: int) -> bool:
        """Add `width` tokens to every lane at once where all hold equally many, in order, and have room; whether they
        do."""
        stored, room, lanes = self.lengths[0], self.capacities[0], len(self.lengths)
        even = self.lengths.count(stored) == self.capacities.count(room) == lanes
        if not even or self.table is not None or stored + width > room * PAGE:
            return False
        for name, plane in self.planes.items():
            plane.view(lanes, room * PAGE, plane.shape[-1])[:, stored : stored + width] = planes[name]
        self.lengths = [stored + width] * lanes
        return True

    def next_slots(self, tokens: int) -> list[int] | None:
        """Of each lane, the slot that its next token goes to, the others following; None unless all lanes have room for
        so many. While in order."""
        slots = []
        for start, stored, pages in zip(self.starts, self.lengths, self.capacities, strict=False):
            if stored + tokens > pages * PAGE:
                return None
            slots.append(start * PAGE + stored)
        return slots

    def make_room(self, tokens: int) -> None:
        """Let every lane have room for so many more, as `append` would."""
        if self.next_slots(tokens) is None:
            self._grow([tokens] * len(self.lengths))

    def _grow(self, added: list[int]) -> None:
        """Make room for `added` tokens a lane; a small step takes more than it needs."""
        capacities = []
        for stored, more in zip(self.lengths, added, strict=True):
            capacities.append(pages_for(stored + (more if more > PAGE else _room(stored))))
        self.rebuild(None, capacities)

    def keep(self, kept: Sequence[torch.Tensor]) -> None:
        """Keep of each lane only the `kept` entries, ascending. A pool in the middle of growing stays, and closes up in
        place, while it has no more room than it would grow anew; else the memory of the rest returns."""
        growing = all(pages_for(stored) < pages for stored, pages in zip(self.lengths, self.capacities, strict=True))
        fits = all(
            pages <= pages_for(len(entries) + _room(len(entries)))
            for entries, pages in zip(kept, self.capacities, strict=True)
        )
        if growing and fits and self.table is None:
            self._compact(kept)
        else:
            self.rebuild(kept)

    def _compact(self, kept: Sequence[torch.Tensor]) -> None:
        """Move the `kept` entries of each lane down, a part at a time: each goes where all was read already."""
        note = None
        if (journal := self._noting) is not None:
            note = journal.note_removal(kept)
            note.moved = 0, 0, {}
            journal.notes.append(note)
        for lane, entries in enumerate(kept):
            first, done = self.starts[lane] * PAGE, 0
            for part in self.slots(lane, entries).split(PART):
                end = done + len(part)
                if len(part) and part[-1] != first + end - 1:
                    rows = {name: self.flat(name).index_select(0, part) for name in self.planes}
                    if note is not None:
                        note.moved = lane, done, rows
                    for name, own in rows.items():
                        self.flat(name)[first + done : first + end] = own
                done = end
            if note is not None:
                note.moved = lane + 1, 0, {}
        self.lengths = [int(entries.numel()) for entries in kept]
        if journal is not None and note is not None:
            journal.removal_done(note)
            note.moved = None

    def rebuild(self, kept: Sequence[torch.Tensor] | None, capacities: list[int] | None = None) -> None:
        """Move the `kept` entries of each lane (all: None) into a new pool, in order; the old pool's memory returns.

        capacities: pages per lane, by default just enough for what is kept.
        """
        lengths = self.lengths if kept is None else [int(entries.numel()) for entries in kept]
        pool = self._new_pool(capacities if capacities is not None else [pages_for(n) for n in lengths])
        _, starts, planes, _ = pool
        for lane, count in enumerate(lengths):
            slots = self.slots(lane, torch.arange(count, device=self.device) if kept is None else kept[lane])
            start = starts[lane] * PAGE
            for name, plane in planes.items():
                torch.index_select(self.flat(name), 0, slots, out=plane.flatten(0, 1)[start : start + count])
        if (journal := self._noting) is None:
            self.put_pool(*pool, lengths)
            return
        note = None if kept is None else journal.note_removal(kept)
        journal.note_replacement((self.capacities, self.starts, self.planes, self.table, self.lengths))
        self.put_pool(*pool, lengths)
        if note is not None:
            journal.notes.append(note)
            journal.removal_done(note)
        journal.replaced = None

    def filled(self, capacities: list[int], lanes: Sequence[Rows]) -> Pool:
        """A new pool that holds these rows of each lane, in order; what `put_pool` takes."""
        pool = self._new_pool(capacities)
        _, starts, planes, _ = pool
        for lane, rows in enumerate(lanes):
            for name, own in rows.items():
                start = starts[lane] * PAGE
                planes[name].flatten(0, 1)[start : start + len(own)] = own
        return *pool, [len(next(iter(rows.values()))) for rows in lanes]

    def select(self, lanes: Sequence[int]) -> None:
        """Become the pool of these lanes: each with pages of its own, also where a lane comes several times. Not to be
        taken back."""
        held = [self.slots(lane, torch.arange(self.lengths[lane], device=self.device)) for lane in lanes]
        rows = [{name: self.flat(name)[slots] for name in self.planes} for slots in held]
        self.put_pool(*self.filled([self.capacities[lane] for lane in lanes], rows))

    def permute(self, order: torch.Tensor) -> None:
        """Move physical page i to place `order[i]`; nothing that is read may change (used by tests)."""
        table = torch.arange(self.starts[-1], device=self.device) if self.table is None else self.table
        for name, plane in self.planes.items():
            moved = torch.empty_like(plane)
            moved[order] = plane
            self.planes[name] = moved
        self.table = order[table]
        self._placing(self.planes, self.table)

    def clone(self: Own) -> Own:
        """An independent copy."""
        other = copy.copy(self)
        other.lengths, other.journal = list(self.lengths), None
        other.planes = {name: copied(plane) for name, plane in self.planes.items()}
        other._placing(other.planes, other.table)
        return other
