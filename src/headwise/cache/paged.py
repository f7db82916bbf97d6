"""The plain store: keys and values by codecs that need nothing beside the pages of one pool."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, TypeVar

import torch

from headwise.cache.codecs import codec
from headwise.cache.journal import Checkpoint
from headwise.cache.kv_store import KVStore, Segment, check_entries
from headwise.cache.pages import PAGE, Pages, pages_for
from headwise.cache.shape import SIDES, Shape
from headwise.cache.state import State
from headwise.cache.summaries import Summaries
from headwise.errors import SessionError
from headwise.forms import Paged, Side
from headwise.kernels import ops
from headwise.kernels.request import PoolRequest, Writer

Own = TypeVar("Own", bound="PagedStore")
FEW = 16  # new tokens written one by one; more are coded by all threads


class PagedStore(KVStore):
    """Per-head page tables over one pool. Kept tokens (`lengths`) and true positions are two things.

    beside: planes that decoding a key or a value asks for, beside its own.
    """

    beside: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.device = torch.device(device)
        self.pages = self._pool()
        self.summaries = Summaries()
        self._extras = shape.extras
        self._writer: Writer | None = None  # of the pool as it lay at version `_found`
        self._found = -1

    def _pool(self) -> Pages:
        """An empty pool: the one place that says where pages lie."""
        return Pages(self.shape.lanes, self.shape.layout, self.device)

    @property
    def lengths(self) -> list[int]:
        """As in KVStore."""
        return self.pages.lengths

    @property
    def nbytes(self) -> int:
        """As in KVStore."""
        return self.pages.nbytes + self.summaries.nbytes

    def runs(self) -> list[tuple[int, int]]:
        """As in KVStore."""
        return self.pages.runs()

    def pools(self) -> Sequence[PagedStore]:
        """This store."""
        return (self,)

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        extras: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """As in KVStore."""
        if counts is None and extras is None and self._write(keys, values, positions):
            return
        each = counts if counts is not None else [keys.shape[1]] * self.shape.lanes
        planes = {"position": positions[..., None].to(torch.int32)}
        for part, (side, x) in enumerate(zip(SIDES, self._lying(keys, values), strict=False)):
            for name, plane in self._encode(part, x, positions, each).items():
                planes[side + name] = plane
        for name, (width, dtype) in self._extras.items():
            planes[name] = torch.zeros((*positions.shape, width), dtype=dtype, device=positions.device)
        self.pages.append(planes | (extras or {}), counts)

    def _write(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> bool:
        """Append new tokens of all lanes where they lie by one call; whether there is one for this pool, and room."""
        pages, tokens = self.pages, keys.shape[1]
        if tokens > FEW:
            return False
        pages.make_room(tokens)
        if pages.version != self._found:
            self._writer, self._found = self.find_writer(), pages.version
        same = keys.dtype == values.dtype == self.shape.dtype and positions.dtype == torch.int64
        if self._writer is None or not same or (slots := pages.next_slots(tokens)) is None:
            return False
        lying = self._lying(keys, values)
        self._writer(lying[0], lying[-1], positions, slots)
        pages.lengths = [length + tokens for length in pages.lengths]
        return True

    def _lying(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of keys and values, those that lie by themselves."""
        return (keys, values)[: len(self.shape.codecs)]

    def find_writer(self) -> Writer | None:
        """A call that appends to the pool as it lies now; None where no backend has one."""
        if not self.pools() or self.pages.table is not None:
            return None
        keys, values = self.sides(0, self.shape.lanes)
        beside = {name: self.pages.planes[name] for name in ("position", *self._extras)}
        return ops.prepare_append.offer(PoolRequest(keys, values, beside, self.shape.dtype))

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """As in KVStore, plain codecs as views and not copies; SessionError unless lanes hold equally many tokens."""
        if len(set(self.lengths[first:last])) > 1:
            raise SessionError(f"lanes {first} to {last} hold {self.lengths[first:last]} tokens, not equally many")
        planes = {name: plane[:, :stop] for name, plane in self.pages.read(first, last).items()}
        keys, values = self._both(planes, first, last)
        return Segment(first, last, keys, values, planes["position"][..., 0])

    def _both(self, planes: dict[str, torch.Tensor], first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [h, n, d] and values [h, n, e] of the lanes [first, last) from their planes."""
        keys, skip = self._decode(0, planes, first, last), self.shape.skip
        return keys, self._decode(1, planes, first, last) if skip is None else keys[..., skip:]

    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in KVStore."""
        return self._decode(0, self.pages.read(first, last, ("key.", *self.beside), start), first, last, start)

    def values(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in KVStore."""
        if (skip := self.shape.skip) is not None:
            return self.keys(first, last, start)[..., skip:]
        return self._decode(1, self.pages.read(first, last, ("value.", *self.beside), start), first, last, start)

    def paged(self, first: int, last: int, stop: int | None = None) -> Paged:
        """As in KVStore, as they lie, to be read in place."""
        pages = self.pages
        keys, values = self.sides(first, last)
        held = pages.lengths[first:last]
        lengths = tuple(held if stop is None else [min(n, stop) for n in held])
        starts = tuple(pages.starts[first:last])
        dense = partial(self._dense, first, last, stop)
        return Paged(keys, values, lengths, starts, pages.table, PAGE, dense, self.shape.skip or 0)

    def sides(self, first: int, last: int) -> tuple[Side, Side]:
        """Keys and values of a run of lanes as they lie: planes of all lanes, and what the run has of its own. Where
        values are parts of keys, the keys twice."""
        lying = [self._lies(part, first, last) for part in range(len(self.shape.codecs))]
        return lying[0], lying[-1]

    def _lies(self, part: int, first: int, last: int) -> Side:
        """The keys (part 0) or the values (1) of a run of lanes as they lie."""
        return Side(self.shape.codecs[part], self.shape.widths[part], self.side(part, self.pages.planes))

    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """As in KVStore."""
        return self.pages.plane("position", first, last)[..., 0]

    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """As in KVStore."""
        return self.pages.plane(name, first, last)

    def write_extras(self, name: str, lane: int, numbers: torch.Tensor) -> None:
        """As in KVStore."""
        self.pages.write(lane, torch.arange(self.lengths[lane], device=numbers.device), {name: numbers})

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """As in KVStore."""
        if self.shape.skip is not None:
            raise SessionError("values that are channels of their keys cannot be replaced by others")
        counts = [len(entries) if one == lane else 0 for one in range(self.shape.lanes)]
        values = values.to(self.shape.dtype).expand(self.shape.lanes, -1, -1)
        positions = self.positions(lane)[entries].expand(self.shape.lanes, -1)
        planes = self._encode(1, values, positions, counts)
        self.pages.write(lane, entries, {f"value.{name}": plane[lane] for name, plane in planes.items()})

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in KVStore."""
        check_entries(self, entries)
        self.summaries.clear()
        self.pages.keep(entries)

    def truncate(self, seen: Sequence[int]) -> None:
        """As in KVStore."""
        kept = [self.positions(lane) < limit if self.lengths[lane] else None for lane, limit in enumerate(seen)]
        counts = [0 if mask is None else int(mask.sum()) for mask in kept]
        self.summaries.clear()  # even where no token leaves: notes that they were made by may
        if counts == self.lengths:
            return
        if any(mask is not None and not mask[:n].all() for mask, n in zip(kept, counts, strict=True)):
            none = torch.zeros(0, dtype=torch.int64, device=self.pages.device)
            self.keep([none if mask is None else mask.nonzero()[:, 0] for mask in kept])
            return
        self.pages.lengths = counts
        if sum(map(pages_for, counts)) < 0.9 * sum(self.pages.capacities):
            self.pages.rebuild(None, [pages_for(count) for count in counts])

    def checkpoint(self) -> Checkpoint:
        """As in KVStore."""
        return Checkpoint((self.pages.checkpoint(),), (self.summaries.checkpoint(),))

    def fork(self: Own) -> Own:
        """An independent copy."""
        other = copy.copy(self)
        other.pages, other.summaries = self.pages.clone(), Summaries()
        return other

    def select(self, lanes: Sequence[int]) -> None:
        """As in KVStore."""
        rows = len(lanes) * self.shape.rows // self.shape.lanes
        self.pages.select(lanes)
        self.shape = replace(self.shape, lanes=len(lanes), rows=rows)
        self.summaries.clear()

    def permute_pages(self, generator: torch.Generator) -> None:
        """As in KVStore."""
        self.pages.permute(torch.randperm(self.pages.starts[-1], generator=generator))

    def state(self) -> dict[str, torch.Tensor]:
        """As in KVStore: planes, lanes one after the other, and the lengths."""
        lanes = [self.pages.read(lane, lane + 1) for lane in range(self.shape.lanes)]
        planes = {name: torch.cat([lane[name][0] for lane in lanes]) for name in self.shape.layout}
        return planes | {"lengths": torch.tensor(self.lengths)}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in KVStore."""
        lengths = state.lengths(self.shape.lanes, seen)
        for name, (width, dtype) in self.shape.layout.items():
            state.take(name, dtype, [sum(lengths), width])
        state.positions(lengths, seen)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """As in KVStore."""
        lengths = state["lengths"].tolist()
        longest = max(lengths, default=0)
        pages = self._pool()
        rows = {name: state[name].to(pages.device).split(lengths) for name in self.shape.layout}
        padded = {
            name: torch.stack([torch.cat((row.new_zeros(longest - len(row), row.shape[1]), row)) for row in parts])
            for name, parts in rows.items()
        }
        if longest:
            pages.append(padded, lengths)
        self.pages = pages
        self.summaries.clear()

    def _encode(
        self, part: int, x: torch.Tensor, positions: torch.Tensor, counts: list[int]
    ) -> dict[str, torch.Tensor]:
        """Planes of the new keys (part 0) or values (1) `x [lanes, t, width]`; of lane i the last counts[i] count."""
        return codec(self.shape.codecs[part]).encode(x)

    def _decode(
        self, part: int, planes: dict[str, torch.Tensor], first: int, last: int, start: int = 0
    ) -> torch.Tensor:
        """Keys (part 0) or values (1) [h, n, width] of the lanes [first, last) from their planes, which begin at entry
        `start`; planes of `beside` are among them."""
        return codec(self.shape.codecs[part]).decode(self.side(part, planes), self.shape.dtype)

    def side(self, part: int, planes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The planes of the keys (part 0) or the values (1), by the codec's own names."""
        prefix = SIDES[part]
        return {name.removeprefix(prefix): plane for name, plane in planes.items() if name.startswith(prefix)}
