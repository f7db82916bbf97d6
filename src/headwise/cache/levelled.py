"""Keys and values at several levels of precision: new tokens at the finest, and from there to coarser ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from headwise.cache.journal import Checkpoint
from headwise.cache.kv_store import KVStore, Segment, check_entries
from headwise.cache.paged import PagedStore
from headwise.cache.state import State
from headwise.cache.summaries import Summaries
from headwise.forms import Causal, Full, Paged, Where


class LevelledStore(KVStore):
    """A store made of stores, the first of its `parts` the finest. Tokens are read in the order of their positions.

    Tokens are appended to the finest part. `demote` moves them to coarser ones, never back.
    """

    ragged = False

    def __init__(self, parts: Sequence[KVStore]) -> None:
        self._parts = parts
        self.shape, self.device = parts[0].shape, parts[0].device
        self.summaries = Summaries()

    @property
    def parts(self) -> Sequence[KVStore]:
        """As in KVStore."""
        return self._parts

    def pools(self) -> Sequence[PagedStore]:
        """As in KVStore: those of every level, where all have theirs."""
        found = [part.pools() for part in self.parts]
        return [pool for own in found for pool in own] if all(found) else ()

    @property
    def lengths(self) -> list[int]:
        """As in KVStore."""
        return [sum(counts) for counts in zip(*(part.lengths for part in self.parts), strict=True)]

    @property
    def nbytes(self) -> int:
        """As in KVStore."""
        return sum(part.nbytes for part in self.parts) + self.summaries.nbytes

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """As in KVStore."""
        lanes = [list(wanted) for wanted in counts]
        for lane in lanes:
            for level in range(len(lane) - 1, 0, -1):
                left = lane[level] - self.parts[level].accepted(lane[level])
                lane[level], lane[level - 1] = lane[level] - left, lane[level - 1] + left
        by_level = zip(self.parts, zip(*lanes, strict=True), strict=True)
        return sum(part.predicted([(count,) for count in level]) for part, level in by_level)

    def runs(self) -> list[tuple[int, int]]:
        """As in KVStore, at every level."""
        cuts = {first for part in self.parts for first, _ in part.runs()}
        starts = sorted(cuts)
        return list(zip(starts, [*starts[1:], self.shape.lanes], strict=True))

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        extras: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """As in KVStore, to the finest part."""
        self.parts[0].append(keys, values, positions, counts, extras)

    def pieces(
        self, first: int, last: int, where: Where, tokens: int, stop: int | None = None
    ) -> Iterator[tuple[slice, Paged, Where]]:
        """As in KVStore: level by level where everything is read, or all before the new tokens, or all but what comes
        after each of them, as these lie at the finest; then it does not matter how entries are numbered. Else in one
        piece, in reading order."""
        after = 0 if stop is None else max(0, self.lengths[first] - stop)
        whole = isinstance(where, Full | Causal) and after in (0, tokens)
        if not whole or self.parts[0].lengths[first] < tokens:
            yield from super().pieces(first, last, where, tokens, stop)
            return
        *coarser, finest = self._held(first)
        if (left := finest.lengths[first] - after) or not coarser:
            yield slice(0, last - first), finest.paged(first, last, left), where
        for part in reversed(coarser):
            yield slice(0, last - first), part.paged(first, last), Full()

    def _order(self, first: int, last: int) -> torch.Tensor | None:
        """Where the tokens of a run of lanes, level after level from the coarsest, stand in reading order [h, n]; None
        where they follow it already."""
        positions = torch.cat([part.positions_of(first, last) for part in reversed(self.parts)], 1)
        return None if bool((positions.diff(dim=1) > 0).all()) else positions.argsort(dim=1)

    def _joined(self, pieces: Sequence[torch.Tensor], order: torch.Tensor | None) -> torch.Tensor:
        """What is said of the tokens of each level [h, m, ...], the coarsest first, in reading order [h, n, ...]."""
        whole = torch.cat(list(pieces), dim=1)
        return whole if order is None else torch.stack([one[by] for one, by in zip(whole, order, strict=True)])

    def _held(self, lane: int) -> list[KVStore]:
        """The parts in which a lane has tokens, the coarsest first; the finest where it has none."""
        return [part for part in reversed(self.parts) if part.lengths[lane]] or [self.parts[0]]

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """As in KVStore."""
        order = self._order(first, last)
        held = [part.segment(first, last) for part in self._held(first)]
        keys, values, positions = (
            self._joined([getattr(one, name) for one in held], order)[:, :stop]
            for name in ("keys", "values", "positions")
        )
        return Segment(first, last, keys, values, positions)

    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in KVStore, in reading order."""
        return self._from("keys", first, last, start)

    def values(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in KVStore, in reading order."""
        return self._from("values", first, last, start)

    def _from(self, side: str, first: int, last: int, start: int) -> torch.Tensor:
        """`keys` or `values` of a run of lanes from entry `start` on, in reading order; of the levels that have any."""
        order = self._order(first, last)
        if order is not None:
            return self._joined([getattr(part, side)(first, last) for part in self._held(first)], order)[:, start:]
        pieces, before = [], 0
        for part in self._held(first):
            if before + part.lengths[first] > start:
                pieces.append(getattr(part, side)(first, last, max(0, start - before)))
            before += part.lengths[first]
        return torch.cat(pieces, dim=1)

    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """As in KVStore."""
        return torch.cat([part.positions_of(first, last) for part in self.parts], dim=1).sort(dim=1).values

    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """As in KVStore, in reading order."""
        pieces = [part.extras(name, first, last) for part in reversed(self.parts)]
        return self._joined(pieces, self._order(first, last))

    def levels(self, first: int, last: int) -> torch.Tensor:
        """As in KVStore, in reading order."""
        pieces = [torch.full_like(p.levels(first, last), level) for level, p in enumerate(self.parts)]
        return self._joined(pieces[::-1], self._order(first, last))

    def write_extras(self, name: str, lane: int, numbers: torch.Tensor) -> None:
        """As in KVStore, numbers in reading order."""
        for part, own in zip(reversed(self.parts), self.split(lane, numbers), strict=True):
            part.write_extras(name, lane, own)

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """As in KVStore, entries in reading order."""
        new = torch.full((self.lengths[lane],), -1).index_copy(0, entries.cpu(), torch.arange(len(entries)))
        for part, own in zip(reversed(self.parts), self.split(lane, new), strict=True):
            here = (own >= 0).nonzero()[:, 0]
            if len(here):
                part.revalue(lane, here.to(values.device), values[own[here].to(values.device)])

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in KVStore; entries in reading order."""
        check_entries(self, entries)
        self.summaries.clear()
        kept = [
            torch.zeros(n, dtype=torch.bool).index_fill(0, e.cpu(), True)
            for n, e in zip(self.lengths, entries, strict=True)
        ]
        own = [self.split(lane, mask) for lane, mask in enumerate(kept)]
        for part, masks in zip(reversed(self.parts), zip(*own, strict=True), strict=True):
            part.keep([mask.nonzero()[:, 0] for mask in masks])

    def demote(self, wanted: Sequence[torch.Tensor | None]) -> None:
        """Move the tokens of lane i that lie at a finer level than `wanted[i] [n]` (0 the finest; None: leave all).

        A level takes over as many as it accepts, the oldest first; what is left over stays at the next finer level that
        accepts it.
        """
        self.summaries.clear()
        own = [None if levels is None else self.split(lane, levels)[::-1] for lane, levels in enumerate(wanted)]
        for source in range(len(self.parts) - 2, -1, -1):
            rest = [torch.arange(length) for length in self.parts[source].lengths]
            for target in range(len(self.parts) - 1, source, -1):
                coarser, moving = self.parts[target], []
                for lane, (levels, left) in enumerate(zip(own, rest, strict=True)):
                    due = left[levels[source].cpu()[left] >= target] if levels is not None else left[:0]
                    moving.append(due[: coarser.accepted(len(due), coarser.lengths[lane])])
                if any(len(entries) for entries in moving):
                    self._copy(source, target, moving)
                    rest = [a[~torch.isin(a, b)] for a, b in zip(rest, moving, strict=True)]
            if [len(entries) for entries in rest] != self.parts[source].lengths:
                self.parts[source].keep(rest)

    def _copy(self, source: int, target: int, moving: list[torch.Tensor]) -> None:
        """Append the `moving` entries of each lane of one part to another, by its codecs."""
        part, counts = self.parts[source], [len(entries) for entries in moving]
        lanes = [self._taken(part, lane, entries) for lane, entries in enumerate(moving)]
        longest = max(counts)
        planes = {
            name: torch.stack([torch.nn.functional.pad(x[name], (0, 0, longest - len(x[name]), 0)) for x in lanes])
            for name in lanes[0]
        }
        keys, values, positions = (planes.pop(name) for name in ("keys", "values", "positions"))
        self.parts[target].append(keys, values, positions[..., 0], counts, planes)

    def _taken(self, part: KVStore, lane: int, entries: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keys [m, d], values [m, e], positions [m, 1] and what is remembered [m, width] of entries of a lane."""
        segment = part.segment(lane, lane + 1)
        planes = {"keys": segment.keys, "values": segment.values, "positions": segment.positions[..., None]}
        planes |= {name: part.extras(name, lane, lane + 1) for name in self.shape.extras}
        return {name: plane[0, entries.to(plane.device)] for name, plane in planes.items()}

    def split(self, lane: int, x: torch.Tensor) -> list[torch.Tensor]:
        """What is in reading order [n, ...], by part, the coarsest first."""
        order = self._order(lane, lane + 1)
        stored = x if order is None else torch.empty_like(x).index_copy(0, order[0].to(x.device), x)
        return list(stored.split([part.lengths[lane] for part in reversed(self.parts)]))

    def truncate(self, seen: Sequence[int]) -> None:
        """As in KVStore."""
        self.summaries.clear()
        for part in self.parts:
            part.truncate(seen)

    def checkpoint(self) -> Checkpoint:
        """As in KVStore, of every part."""
        whole = Checkpoint((), (self.summaries.checkpoint(),))
        for part in self.parts:
            whole += part.checkpoint()
        return whole

    def fork(self) -> LevelledStore:
        """As in KVStore."""
        return LevelledStore([part.fork() for part in self.parts])

    def select(self, lanes: Sequence[int]) -> None:
        """As in KVStore."""
        self.summaries.clear()
        for part in self.parts:
            part.select(lanes)
        self.shape = self.parts[0].shape

    def permute_pages(self, generator: torch.Generator) -> None:
        """As in KVStore, of every part."""
        for part in self.parts:
            part.permute_pages(generator)

    def state(self) -> dict[str, torch.Tensor]:
        """As in KVStore, of part i by names that begin with "i."."""
        return {f"{i}.{name}": plane for i, part in enumerate(self.parts) for name, plane in part.state().items()}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in KVStore."""
        for i, part in enumerate(self.parts):
            part.expect(state.under(f"{i}."), seen)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """As in KVStore."""
        self.summaries.clear()
        for i, part in enumerate(self.parts):
            part.restore({name.partition(".")[2]: x for name, x in state.items() if name.partition(".")[0] == str(i)})
