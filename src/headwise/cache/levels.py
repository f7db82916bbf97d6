"""Keys and values at several levels of precision: new tokens at the finest, and from there to coarser ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from headwise.cache.codecs.channels import Channels
from headwise.cache.codecs.lowrank import LowRank, Spanned
from headwise.cache.codecs.sharing import sharing
from headwise.cache.grouped import GroupedStore
from headwise.cache.journal import Checkpoint
from headwise.cache.projected import ProjectedStore
from headwise.cache.spanned import SpannedStore
from headwise.cache.state import State
from headwise.cache.store import Segment, Shape, Store
from headwise.cache.summaries import Summaries, Summarise
from headwise.cache.tiers import Tier
from headwise.cache.tiers.store import TieredStore
from headwise.errors import HeadwiseError, SessionError

Codecs = tuple[str, str]
KINDS: dict[type, type[Store]] = {Channels: GroupedStore, LowRank: ProjectedStore, Spanned: SpannedStore}


class Levels:
    """A store made of stores, `parts[0]` the finest. Tokens are read in the order of their positions.

    Tokens are appended to the finest part. `demote` moves them to coarser ones, never back.
    """

    def __init__(self, parts: list[Store]) -> None:
        self.parts = parts
        self.shape = parts[0].shape
        self._summaries = Summaries()

    @property
    def lengths(self) -> list[int]:
        """Tokens stored, by lane."""
        return [sum(counts) for counts in zip(*(part.lengths for part in self.parts), strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return sum(part.nbytes for part in self.parts) + self._summaries.nbytes

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """Bytes for lanes of `counts` tokens wanted at each level, whole pages."""
        lanes = [list(wanted) for wanted in counts]
        for lane in lanes:
            for level in range(len(lane) - 1, 0, -1):
                left = lane[level] - self.parts[level].taken(lane[level])
                lane[level], lane[level - 1] = lane[level] - left, lane[level - 1] + left
        by_level = zip(self.parts, zip(*lanes, strict=True), strict=True)
        return sum(part.predicted([(count,) for count in level]) for part, level in by_level)

    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring lanes [first, last) that hold equally many tokens at every level."""
        cuts = {first for part in self.parts for first, _ in part.runs()}
        starts = sorted(cuts)
        return list(zip(starts, [*starts[1:], self.shape.lanes], strict=True))

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, counts: list[int] | None = None
    ) -> None:
        """As in Store, to the finest part."""
        self.parts[0].append(keys, values, positions, counts)

    def _order(self, first: int, last: int) -> torch.Tensor | None:
        """Where the tokens of a run of lanes, level after level from the coarsest, stand in reading order [h, n]; None
        where they follow it already."""
        positions = torch.cat([part.extras("position", first, last)[..., 0] for part in reversed(self.parts)], 1)
        return None if bool((positions.diff(dim=1) > 0).all()) else positions.argsort(dim=1)

    def _joined(self, pieces: Sequence[torch.Tensor], order: torch.Tensor | None) -> torch.Tensor:
        """What is said of the tokens of each level [h, m, ...], the coarsest first, in reading order [h, n, ...]."""
        whole = torch.cat(list(pieces), dim=1)
        return whole if order is None else torch.stack([one[by] for one, by in zip(whole, order, strict=True)])

    def _held(self, lane: int) -> list[Store]:
        """The parts in which a lane has tokens, the coarsest first; the finest where it has none."""
        return [part for part in reversed(self.parts) if part.lengths[lane]] or self.parts[:1]

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """As in Store."""
        order = self._order(first, last)
        held = [part.segment(first, last) for part in self._held(first)]
        keys, values, positions = (
            self._joined([getattr(one, name) for one in held], order)[:, :stop]
            for name in ("keys", "values", "positions")
        )
        return Segment(first, last, keys, values, positions)

    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in Store, in reading order."""
        order = self._order(first, last)
        if order is not None:
            return self._joined([part.keys(first, last) for part in self._held(first)], order)[:, start:]
        pieces, before = [], 0
        for part in self._held(first):
            if before + part.lengths[first] > start:
                pieces.append(part.keys(first, last, max(0, start - before)))
            before += part.lengths[first]
        return torch.cat(pieces, dim=1)

    def values(self, first: int, last: int) -> torch.Tensor:
        """As in Store, in reading order."""
        return self._joined([part.values(first, last) for part in self._held(first)], self._order(first, last))

    def positions(self, lane: int) -> torch.Tensor:
        """True positions [n] of a lane's tokens, ascending."""
        return self.positions_of(lane, lane + 1)[0]

    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """As in Store."""
        return torch.cat([part.positions_of(first, last) for part in self.parts], dim=1).sort(dim=1).values

    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """What is remembered [h, n, width] of the tokens of a run of lanes: "mass" or "notes"."""
        pieces = [part.extras(name, first, last) for part in reversed(self.parts)]
        return self._joined(pieces, self._order(first, last))

    def levels(self, first: int, last: int) -> torch.Tensor:
        """The level [h, n] at which each token of a run of lanes lies."""
        pieces = [torch.full_like(p.levels(first, last), level) for level, p in enumerate(self.parts)]
        return self._joined(pieces[::-1], self._order(first, last))

    def mass(self, first: int, last: int) -> torch.Tensor:
        """Accumulated attention mass [h, n] of a run of lanes of equal length."""
        return self.extras("mass", first, last)[..., 0]

    def note(self, lane: int, notes: torch.Tensor) -> None:
        """Replace the `notes [n, width]` about the lane's tokens."""
        for part, own in zip(reversed(self.parts), self._split(lane, notes), strict=True):
            part.note(lane, own)

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """As in Store, entries in reading order."""
        new = torch.full((self.lengths[lane],), -1).index_copy(0, entries.cpu(), torch.arange(len(entries)))
        for part, own in zip(reversed(self.parts), self._split(lane, new), strict=True):
            here = (own >= 0).nonzero()[:, 0]
            if len(here):
                part.revalue(lane, here.to(values.device), values[own[here].to(values.device)])

    def add_mass(self, lane: int, mass: torch.Tensor) -> None:
        """Add `mass [n]` to what the lane's tokens have received so far."""
        for part, own in zip(reversed(self.parts), self._split(lane, mass), strict=True):
            part.add_mass(lane, own)

    def summaries(self, first: int, last: int, size: int, make: Summarise) -> torch.Tensor:
        """As in Store, of the tokens in reading order."""
        return self._summaries.of(self, first, last, size, make)

    @property
    def summaries_nbytes(self) -> int:
        """Bytes of the summaries."""
        return self._summaries.nbytes

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in Store; entries in reading order."""
        for lane, chosen in enumerate(entries):
            if chosen.numel() and not 0 <= int(chosen[0]) <= int(chosen[-1]) < self.lengths[lane]:
                raise SessionError(f"lane {lane} holds {self.lengths[lane]} tokens, none at {int(chosen[-1])}")
        self._summaries.clear()
        kept = [
            torch.zeros(n, dtype=torch.bool).index_fill(0, e.cpu(), True)
            for n, e in zip(self.lengths, entries, strict=True)
        ]
        own = [self._split(lane, mask) for lane, mask in enumerate(kept)]
        for part, masks in zip(reversed(self.parts), zip(*own, strict=True), strict=True):
            part.keep([mask.nonzero()[:, 0] for mask in masks])

    def demote(self, wanted: Sequence[torch.Tensor | None]) -> None:
        """Move the tokens of lane i that stand at a finer level than `wanted[i] [n]` (0 the finest; None: leave all).

        A level takes over as many as it should (`Shape.taken`), the oldest first; what is left over stays at the next
        finer level that takes it.
        """
        self._summaries.clear()
        own = [None if levels is None else self._split(lane, levels)[::-1] for lane, levels in enumerate(wanted)]
        for source in range(len(self.parts) - 2, -1, -1):
            rest = [torch.arange(length) for length in self.parts[source].lengths]
            for target in range(len(self.parts) - 1, source, -1):
                moving = []
                for lane, (levels, left) in enumerate(zip(own, rest, strict=True)):
                    due = left[levels[source].cpu()[left] >= target] if levels is not None else left[:0]
                    moving.append(due[: self.parts[target].takes(lane, len(due))])
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

    def _taken(self, part: Store, lane: int, entries: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keys [m, d], values [m, e], positions [m, 1] and what is remembered [m, width] of entries of a lane."""
        segment = part.segment(lane, lane + 1)
        planes = {"keys": segment.keys, "values": segment.values, "positions": segment.positions[..., None]}
        planes |= {name: part.extras(name, lane, lane + 1) for name in self.shape.extras}
        return {name: plane[0, entries.to(plane.device)] for name, plane in planes.items()}

    def _split(self, lane: int, x: torch.Tensor) -> list[torch.Tensor]:
        """What is in reading order [n, ...], by part, the coarsest first."""
        order = self._order(lane, lane + 1)
        stored = x if order is None else torch.empty_like(x).index_copy(0, order[0].to(x.device), x)
        return list(stored.split([part.lengths[lane] for part in reversed(self.parts)]))

    def truncate(self, seen: Sequence[int]) -> None:
        """Forget every token of lane i at position >= seen[i]."""
        self._summaries.clear()
        for part in self.parts:
            part.truncate(seen)

    def checkpoint(self) -> Checkpoint:
        """As in Store, of every part."""
        whole = Checkpoint((), (self._summaries.checkpoint(),))
        for part in self.parts:
            whole += part.checkpoint()
        return whole

    def fork(self) -> Levels:
        """An independent copy."""
        return Levels([part.fork() for part in self.parts])

    def select(self, lanes: Sequence[int]) -> None:
        """As in Store."""
        self._summaries.clear()
        for part in self.parts:
            part.select(lanes)
        self.shape = self.parts[0].shape

    def permute_pages(self, generator: torch.Generator) -> None:
        """Shuffle the physical pages of every part (used by tests)."""
        for part in self.parts:
            part.permute_pages(generator)

    def state(self) -> dict[str, torch.Tensor]:
        """Live entries only: what `restore` reads."""
        return {f"{i}.{name}": plane for i, part in enumerate(self.parts) for name, plane in part.state().items()}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in Store."""
        for i, part in enumerate(self.parts):
            part.expect(state.under(f"{i}."), seen)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        self._summaries.clear()
        for i, part in enumerate(self.parts):
            part.restore({name.partition(".")[2]: x for name, x in state.items() if name.partition(".")[0] == str(i)})


def new_store(
    shape: Shape, levels: Sequence[Codecs], device: torch.device | str = "cpu", tier: Tier | None = None
) -> Store | Levels:
    """An empty store for tokens at these levels of precision, the finest first; with a tier, it holds little near."""
    if tier is not None:
        if len(levels) > 1:
            raise HeadwiseError(
                f"resident= takes keys and values of one precision, this recipe writes them in {len(levels)}; leave "
                "resident= out, or compress by int8 or int4"
            )
        return TieredStore(replace(shape, codecs=levels[0]), tier, device)
    parts: list[Store] = []
    for codecs in levels:
        kinds = {type(one) for one in map(sharing, codecs) if one is not None}
        if (kinds and len(levels) == 1) or len(kinds) > 1 or isinstance(sharing(codecs[1]), Channels):
            raise HeadwiseError(
                f"codecs {codecs}: tokens share numbers only behind a finer level, values none by channel, and keys "
                "and values in one way"
            )
        store = KINDS[kinds.pop()] if kinds else Store
        parts.append(store(replace(shape, codecs=codecs), device))
    return parts[0] if len(parts) == 1 else Levels(parts)
