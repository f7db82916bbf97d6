"""How a pool of pages goes back to a checkpoint: by its tables and lengths then, and by what later changes destroy."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from headwise.cache.pages import Pages

Rows = dict[str, torch.Tensor]  # by plane, [m, width]
Pool = tuple[list[int], list[int], Rows, torch.Tensor | None, list[int]]  # capacities, starts, planes, table, lengths
Rollback = Callable[[], None]  # makes something again what it was at a checkpoint


@dataclass(frozen=True)
class Overwritten:
    """Entries of a lane were overwritten, of which these `rows` were there before."""

    lane: int
    entries: torch.Tensor
    rows: Rows


@dataclass
class Removed:
    """Entries left. By lane: those that stayed (`kept`), those that left (`gone`) and what was in these (`rows`).

    moved: while kept entries move down in place, how far they are: the lane, its entries that have moved, and the rows
    that are being written behind these. None once all have.
    """

    kept: list[torch.Tensor]
    gone: list[torch.Tensor]
    rows: list[Rows]
    moved: tuple[int, int, Rows] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what left."""
        return sum(row.untyped_storage().nbytes() for rows in self.rows for row in rows.values())


@dataclass(frozen=True)
class Replaced:
    """A pool to go back to, and what the journal says of it, while another takes its place or it was made by `back`."""

    pool: Pool
    notes: list[Overwritten | Removed]
    counts: list[int]


class Journal:
    """A checkpoint of a pool of pages, and what it takes to go back there.

    Held by whoever may want to go back. The pool knows it by a weak reference alone: without a holder nothing is noted.
    Entries that came after the checkpoint are never noted, as going back drops them. Whatever interrupts a change of
    the pool, and wherever, `back` finds what it needs: it is noted before anything is overwritten.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.lengths, self.capacities = pages.lengths, pages.capacities
        self.counts = pages.lengths  # by lane, how many of the entries now are older than the checkpoint
        self.notes: list[Overwritten | Removed] = []
        self.replaced: Replaced | None = None
        pages.journal = weakref.ref(self)

    @property
    def nbytes(self) -> int:
        """Bytes kept of what was taken away."""
        return sum(note.nbytes for note in self.notes if isinstance(note, Removed)) if self.notes else 0

    def note_overwrite(self, lane: int, entries: torch.Tensor, names: Sequence[str]) -> None:
        """Some planes of a lane's `entries [m]` are about to be overwritten."""
        older = entries[entries < self.counts[lane]]
        slots = self.pages.slots(lane, older)
        self.notes.append(Overwritten(lane, older, {name: self.pages.flat(name)[slots] for name in names}))

    def note_removal(self, kept: Sequence[torch.Tensor]) -> Removed:
        """All entries but the `kept` ones of each lane are about to leave; what was in them is kept from now on."""
        stay, gone, rows = [], [], []
        for lane, (entries, count) in enumerate(zip(kept, self.counts, strict=True)):
            older = entries[entries < count]
            leaving = torch.ones(count, dtype=torch.bool, device=older.device)
            leaving[older] = False
            stay.append(older)
            gone.append(leaving.nonzero()[:, 0])
            slots = self.pages.slots(lane, gone[-1])
            rows.append({name: self.pages.flat(name).index_select(0, slots) for name in self.pages.planes})
        return Removed(stay, gone, rows)

    def note_replacement(self, pool: Pool) -> None:
        """A new pool is about to take the place of `pool`."""
        self.replaced = Replaced(pool, list(self.notes), self.counts)

    def removal_done(self, note: Removed) -> None:
        """What `note` says has been done."""
        self.counts = [len(entries) for entries in note.kept]

    def back(self) -> None:
        """Make the pool what it was, in contents, lengths and room. Interrupted, it is called again."""
        pages = self.pages
        self._undo_replacement()
        if self.notes or pages.capacities != self.capacities:
            lanes = [self._rows_before(lane) for lane in range(len(self.lengths))]
            for note in reversed(self.notes):
                if isinstance(note, Overwritten):
                    for name, rows in note.rows.items():
                        lanes[note.lane][name][note.entries] = rows
                elif note is not self._interrupted:
                    lanes = [_put_back(*one) for one in zip(lanes, note.kept, note.gone, note.rows, strict=True)]
            self.replaced = Replaced(pages.filled(self.capacities, lanes), [], self.lengths)
            self._undo_replacement()
        pages.lengths = self.lengths
        pages.journal = None

    def _undo_replacement(self) -> None:
        """Let the pool be the one that is not to be replaced, where there is one."""
        if self.replaced is not None:
            self.pages.put_pool(*self.replaced.pool)
            self.notes, self.counts = self.replaced.notes, self.replaced.counts

    @property
    def _interrupted(self) -> Removed | None:
        """The note of a removal that was interrupted."""
        last = self.notes[-1] if self.notes else None
        return last if isinstance(last, Removed) and last.moved is not None else None

    def _rows_before(self, lane: int) -> Rows:
        """What a lane holds of before the checkpoint, a removal that was interrupted undone."""
        pages, note = self.pages, self._interrupted
        if note is None:
            slots = pages.slots(lane, torch.arange(self.counts[lane]))
            return {name: pages.flat(name)[slots] for name in pages.planes}
        assert note.moved is not None
        at, done, pending = note.moved
        kept = note.kept[lane]
        there = kept.clone()  # the entry at which each kept one lies by now
        if lane < at:
            there = torch.arange(len(kept))
        elif lane == at:
            there[:done] = torch.arange(done, device=there.device)[: len(kept)]
        rows = {name: pages.flat(name)[pages.slots(lane, there)] for name in pages.planes}
        if lane == at:
            for name, one in pending.items():
                rows[name][done : done + len(one)] = one[: max(0, len(kept) - done)]
        return _put_back(rows, kept, note.gone[lane], note.rows[lane])


@dataclass(slots=True)  # not frozen: several are made at every step, and a frozen one takes three times as long
class Checkpoint:
    """A state to go `back` to while this is held: of pools of pages, and of what lies beside them."""

    journals: tuple[Journal, ...]
    rollbacks: tuple[Rollback, ...]

    def __add__(self, other: Checkpoint) -> Checkpoint:
        """Both."""
        return Checkpoint(self.journals + other.journals, self.rollbacks + other.rollbacks)

    def back(self) -> None:
        """Make everything what it was. Interrupted, it is called again."""
        for journal in self.journals:
            journal.back()
        for rollback in self.rollbacks:
            rollback()

    @property
    def nbytes(self) -> int:
        """Bytes kept of what was taken away."""
        return sum([journal.nbytes for journal in self.journals])


def _put_back(kept_rows: Rows, kept: torch.Tensor, gone: torch.Tensor, gone_rows: Rows) -> Rows:
    """The rows of a lane before a removal, from those that stayed and those that left."""
    whole = {}
    for name, stayed in kept_rows.items():
        whole[name] = stayed.new_empty(len(kept) + len(gone), stayed.shape[1])
        whole[name][kept], whole[name][gone] = stayed, gone_rows[name]
    return whole
