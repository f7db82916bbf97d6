"""Keys and values at several levels of precision: new tokens at the finest, and from there to coarser ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from headwise.attention.view import PageBounds
from headwise.cache.codecs.channels import CHANNELS
from headwise.cache.grouped import GroupedStore
from headwise.cache.store import Segment, Shape, Store
from headwise.errors import HeadwiseError, SessionError

Codecs = tuple[str, str]


class Levels:
    """A store made of stores, `parts[0]` the finest. A lane reads its coarsest tokens first and its finest last.

    Tokens are appended to the finest part. `settle` moves them to coarser ones, never back.
    """

    def __init__(self, parts: list[Store]) -> None:
        self.parts = parts
        self.shape = parts[0].shape

    @property
    def lengths(self) -> list[int]:
        """Tokens stored, by lane."""
        return [sum(counts) for counts in zip(*(part.lengths for part in self.parts), strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return sum(part.nbytes for part in self.parts)

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """Bytes for lanes of `counts` tokens at each level, whole pages."""
        return sum(part.shape.nbytes(level) for part, level in zip(self.parts, zip(*counts, strict=True), strict=True))

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

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """As in Store."""
        if not any(self.lengths[first:last]):
            return self.parts[0].segment(first, last)
        held = [part.segment(first, last) for part in reversed(self.parts) if part.lengths[first]]
        keys, values, positions = (
            torch.cat([getattr(one, name) for one in held], dim=1)[:, :stop] for name in ("keys", "values", "positions")
        )
        return Segment(first, last, keys, values, positions)

    def positions(self, lane: int) -> torch.Tensor:
        """True positions [n] of a lane's tokens, ascending within each level."""
        return torch.cat([part.positions(lane) for part in reversed(self.parts)])

    def remembered(self, name: str, first: int, last: int) -> torch.Tensor:
        """What is remembered [h, n, width] of the tokens of a run of lanes: "mass" or "notes"."""
        return torch.cat([part.remembered(name, first, last) for part in reversed(self.parts)], dim=1)

    def mass(self, first: int, last: int) -> torch.Tensor:
        """Accumulated attention mass [h, n] of a run of lanes of equal length."""
        return self.remembered("mass", first, last)[..., 0]

    def note(self, lane: int, notes: torch.Tensor) -> None:
        """Replace the `notes [n, width]` about the lane's tokens."""
        for part, own in zip(reversed(self.parts), self._split(lane, notes), strict=True):
            part.note(lane, own)

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """As in Store, entries in reading order."""
        start = 0
        for part in reversed(self.parts):
            own = (entries >= start) & (entries < start + part.lengths[lane])
            part.revalue(lane, entries[own] - start, values[own])
            start += part.lengths[lane]

    def add_mass(self, lane: int, mass: torch.Tensor) -> None:
        """Add `mass [n]` to what the lane's tokens have received so far."""
        for part, own in zip(reversed(self.parts), self._split(lane, mass), strict=True):
            part.add_mass(lane, own)

    def bounds(self, first: int, last: int) -> PageBounds:
        """As in Store, of the tokens in reading order."""
        pieces = [part.bounds(first, last) for part in reversed(self.parts) if part.lengths[first]]
        if len(pieces) == 1:
            return pieces[0]
        return bounds_of(self.segment(first, last).keys, pieces[0].page)

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in Store; entries in reading order."""
        for lane, chosen in enumerate(entries):
            if chosen.numel() and not 0 <= int(chosen[0]) <= int(chosen[-1]) < self.lengths[lane]:
                raise SessionError(f"lane {lane} holds {self.lengths[lane]} tokens, none at {int(chosen[-1])}")
        starts = [0] * len(entries)
        for part in reversed(self.parts):
            ends = [start + length for start, length in zip(starts, part.lengths, strict=True)]
            own = [e[(e >= a) & (e < b)] - a for e, a, b in zip(entries, starts, ends, strict=True)]
            part.keep(own)
            starts = ends

    def settle(self, wanted: Sequence[torch.Tensor | None]) -> None:
        """Move the tokens of lane i that stand at a finer level than `wanted[i] [n]` (0 the finest; None: leave all).

        Where a level shares numbers over groups of tokens, only whole groups move, the oldest first; what is left over
        stays at the next finer level that takes it.
        """
        own = [None if levels is None else self._split(lane, levels)[::-1] for lane, levels in enumerate(wanted)]
        for source in range(len(self.parts) - 2, -1, -1):
            rest = [torch.arange(length) for length in self.parts[source].lengths]
            for target in range(len(self.parts) - 1, source, -1):
                whole = group_tokens(self.parts[target].shape)
                moving = []
                for levels, left in zip(own, rest, strict=True):
                    due = left[levels[source].cpu()[left] >= target] if levels is not None else left[:0]
                    moving.append(due[: len(due) // whole * whole])
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
        planes |= {name: part.remembered(name, lane, lane + 1) for name in self.shape.remembered}
        return {name: plane[0, entries.to(plane.device)] for name, plane in planes.items()}

    def _split(self, lane: int, x: torch.Tensor) -> list[torch.Tensor]:
        """What is in reading order [n], by part, the coarsest first."""
        return list(x.split([part.lengths[lane] for part in reversed(self.parts)]))

    def truncate(self, seen: Sequence[int]) -> None:
        """Forget every token of lane i at position >= seen[i]."""
        for part in self.parts:
            part.truncate(seen)

    def fork(self) -> Levels:
        """An independent copy."""
        return Levels([part.fork() for part in self.parts])

    def permute_pages(self, generator: torch.Generator) -> None:
        """Shuffle the physical pages of every part (used by tests)."""
        for part in self.parts:
            part.permute_pages(generator)

    def state(self) -> dict[str, torch.Tensor]:
        """Live entries only: what `restore` reads."""
        return {f"{i}.{name}": plane for i, part in enumerate(self.parts) for name, plane in part.state().items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        for i, part in enumerate(self.parts):
            part.restore({name.partition(".")[2]: x for name, x in state.items() if name.partition(".")[0] == str(i)})


def bounds_of(keys: torch.Tensor, page: int) -> PageBounds:
    """Least and greatest key of each page of keys [h, n, d]."""
    blocks = keys.split(page, dim=1)
    return PageBounds(torch.stack([b.amin(1) for b in blocks], 1), torch.stack([b.amax(1) for b in blocks], 1), page)


def group_tokens(shape: Shape) -> int:
    """Tokens that must be encoded together: 1 unless the keys share numbers over a group."""
    codec = CHANNELS.get(shape.codecs[0])
    return codec.tokens if codec is not None else 1


def new_store(shape: Shape, levels: Sequence[Codecs], device: torch.device | str = "cpu") -> Store | Levels:
    """An empty store for tokens at these levels of precision, the finest first."""
    parts: list[Store] = []
    for codecs in levels:
        if codecs[1] in CHANNELS or (codecs[0] in CHANNELS and len(levels) == 1):
            raise HeadwiseError(f"codecs {codecs}: only keys share numbers over tokens, and only behind a finer level")
        own = replace(shape, codecs=codecs)
        parts.append(GroupedStore(own, device) if codecs[0] in CHANNELS else Store(own, device))
    return parts[0] if len(parts) == 1 else Levels(parts)
