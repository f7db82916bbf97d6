"""The keys and values of one group of heads of one layer, with their true positions. Appends, keeps, truncates."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, TypeVar

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.channels import Channels
from headwise.cache.codecs.lowrank import LowRank
from headwise.cache.codecs.sharing import sharing
from headwise.cache.journal import Checkpoint
from headwise.cache.pages import PAGE, Layout, Pages, pages_for
from headwise.cache.state import State
from headwise.cache.summaries import Summaries, Summarise
from headwise.errors import SessionError
from headwise.forms import Paged, Side, Where
from headwise.shapes import Rope

Own = TypeVar("Own", bound="Store")


@dataclass(frozen=True)
class Shape:
    """What a store holds: `lanes` (batch rows x KV heads) of vectors in `dtype`, by which codecs.

    `with_mass` adds one float32 per token for attention mass accumulated over the queries so far, `notes` as many as an
    eviction method writes down about each token. `rope` is how keys were turned, for codecs that undo it. `rows`: batch
    rows, whose lanes lie one after the other.
    """

    lanes: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    codecs: tuple[str, str] = ("plain", "plain")
    with_mass: bool = False
    notes: int = 0
    rope: Rope | None = None
    rows: int = 1

    @property
    def layout(self) -> Layout:
        """Planes of a token: encoded key, encoded value, position, and mass where it is asked for."""
        key, value = map(codec, self.codecs)
        planes = {f"key.{name}": plane for name, plane in key.planes(self.key_width, self.dtype).items()}
        planes |= {f"value.{name}": plane for name, plane in value.planes(self.value_width, self.dtype).items()}
        planes["position"] = (1, torch.int32)
        return planes | self.extras

    @property
    def extras(self) -> Layout:
        """Planes of what is remembered of a token besides itself; 0 for a new one."""
        widths = {"mass": int(self.with_mass), "notes": self.notes}
        return {name: (width, torch.float32) for name, width in widths.items() if width}

    def nbytes(self, counts: Sequence[int]) -> int:
        """Bytes that lanes of `counts` tokens take, whole pages, with what groups of tokens share."""
        token = sum(width * dtype.itemsize for width, dtype in self.layout.values())
        total = sum(pages_for(count) for count in counts) * PAGE * token
        for name, width in zip(self.codecs, (self.key_width, self.value_width), strict=True):
            if (shared := sharing(name)) is not None:
                total += sum(shared.shared_bytes(width, self.dtype, count) for count in counts)
        return total

    def taken(self, count: int) -> int:
        """How many of `count` tokens a lane that holds none is to take over from a finer level: whole groups where
        groups share numbers; none where a basis for all would take more than it saves."""
        kinds = [shared for name in self.codecs if (shared := sharing(name)) is not None]
        if any(isinstance(one, LowRank) for one in kinds):
            dense = replace(self, codecs=("plain", "plain"))
            # both levels may end in a page that is not full
            return count if self.nbytes([count]) < dense.nbytes([max(0, count - PAGE)]) else 0
        whole = max((one.tokens for one in kinds if isinstance(one, Channels)), default=1)
        return count // whole * whole


@dataclass(frozen=True)
class Segment:
    """Lanes [first, last) that hold equally many tokens, readable as one tensor each."""

    first: int
    last: int
    keys: torch.Tensor  # [h, n, d]
    values: torch.Tensor  # [h, n, e]
    positions: torch.Tensor  # [h, n]

    @property
    def lanes(self) -> slice:
        """The lanes as a slice of dimension h."""
        return slice(self.first, self.last)


class Store:
    """Per-head page tables over one pool. Kept tokens (`lengths`) and true positions are two things.

    beside: planes that decoding a key or a value asks for, beside its own.
    """

    beside: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.device = torch.device(device)
        self.pages = self._pool()
        self._summaries = Summaries()

    def _pool(self) -> Pages:
        """An empty pool: the one place that says where pages lie."""
        return Pages(self.shape.lanes, self.shape.layout, self.device)

    @property
    def parts(self) -> list[Store]:
        """The stores that tokens lie in: this one alone; see `Levels`."""
        return [self]

    @property
    def lengths(self) -> list[int]:
        """Tokens stored, by lane."""
        return self.pages.lengths

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return self.pages.nbytes + self._summaries.nbytes

    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring lanes [first, last) that hold equally many tokens and can be read as one tensor."""
        return self.pages.runs()

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """Bytes for lanes of `counts` tokens, at the one level there is, whole pages."""
        return self.shape.nbytes([count for (count,) in counts])

    def taken(self, count: int) -> int:
        """How many of `count` tokens a lane that holds none is to take over from a finer level."""
        return self.shape.taken(count)

    def takes(self, lane: int, count: int) -> int:
        """How many of `count` tokens of a lane this store is to take over from a finer level now."""
        return self.taken(count)

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        extras: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add keys [lanes, t, d], values [lanes, t, e] at positions [lanes, t]; of lane i only the last counts[i].

        extras: planes [lanes, t, width] of `shape.extras` that the tokens bring along, 0 by default.
        """
        each = counts if counts is not None else [keys.shape[1]] * self.shape.lanes
        planes = {"position": positions[..., None].to(torch.int32)}
        for part, side, x in ((0, "key.", keys), (1, "value.", values)):
            for name, plane in self._encode(part, x, positions, each).items():
                planes[side + name] = plane
        if self.shape.with_mass or self.shape.notes:
            for name, (width, dtype) in self.shape.extras.items():
                planes[name] = torch.zeros((*positions.shape, width), dtype=dtype, device=positions.device)
        self.pages.append(planes | (extras or {}), counts)

    def segments(self) -> list[Segment]:
        """Everything stored, decoded, as few tensors as equal lengths allow. Plain codecs give views, not copies."""
        return [self.segment(first, last) for first, last in self.runs() if self.lengths[first]]

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """The lanes [first, last), which must hold equally many tokens; only their entries before `stop` when given."""
        if len(set(self.lengths[first:last])) > 1:
            raise SessionError(f"lanes {first} to {last} hold {self.lengths[first:last]} tokens, not equally many")
        planes = {name: plane[:, :stop] for name, plane in self.pages.read(first, last).items()}
        keys, values = self._decode(0, planes, first, last), self._decode(1, planes, first, last)
        return Segment(first, last, keys, values, planes["position"][..., 0])

    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """Keys [h, n, d] of a run of lanes of equal length, decoded, from entry `start` on; values are not touched."""
        return self._decode(0, self.pages.read(first, last, ("key.", *self.beside), start), first, last, start)

    def values(self, first: int, last: int) -> torch.Tensor:
        """Values [h, n, e] of a run of lanes of equal length, decoded; keys are not touched."""
        return self._decode(1, self.pages.read(first, last, ("value.", *self.beside)), first, last)

    def pieces(
        self, first: int, last: int, where: Where, tokens: int, stop: int | None = None
    ) -> Iterator[tuple[slice, Paged, Where]]:
        """What `tokens` new queries of the lanes [first, last) read, in pieces that add: (lanes counted from first,
        pages, which of them), each valid until the next is asked for. Here a single one."""
        yield slice(0, last - first), self.paged(first, last, stop), where

    def prefetch(self) -> None:
        """Called while the layer before this one is read: the moment to make ready what this one will read."""

    def paged(self, first: int, last: int, stop: int | None = None) -> Paged:
        """The lanes [first, last) as they lie, for attention to read in place: valid until the store changes.

        stop: only their entries before it, when given.
        """
        pages = self.pages
        keys, values = (
            Side(name, width, self.side(part, pages.planes))
            for part, (name, width) in enumerate(
                zip(self.shape.codecs, (self.shape.key_width, self.shape.value_width), strict=True)
            )
        )
        lengths = tuple(n if stop is None else min(n, stop) for n in pages.lengths[first:last])
        starts = tuple(pages.starts[first:last])
        return Paged(keys, values, lengths, starts, pages.table, PAGE, partial(self._dense, first, last, stop))

    def _dense(self, first: int, last: int, stop: int | None) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """What `Paged.dense` gives of the lanes [first, last)."""
        cut = ((max(a, first), min(b, last)) for a, b in self.runs() if a < last and b > first)
        segments = [self.segment(a, b, stop) for a, b in cut]
        return [(slice(one.first - first, one.last - first), one.keys, one.values) for one in segments]

    def positions(self, lane: int) -> torch.Tensor:
        """True positions [n] of a lane's tokens, ascending."""
        return self.positions_of(lane, lane + 1)[0]

    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """True positions [h, n] of a run of lanes of equal length."""
        return self.pages.read(first, last, "position")["position"][..., 0]

    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """What is remembered [h, n, width] of the tokens of a run of lanes of equal length: "mass" or "notes"."""
        return self.pages.read(first, last, name)[name]

    def levels(self, first: int, last: int) -> torch.Tensor:
        """The level [h, n] at which each token of a run of lanes lies: 0, as there is one; see `Levels`."""
        return torch.zeros(last - first, self.lengths[first], dtype=torch.int64, device=self.pages.device)

    def mass(self, first: int, last: int) -> torch.Tensor:
        """Accumulated attention mass [h, n] of a run of lanes of equal length."""
        return self.extras("mass", first, last)[..., 0]

    def note(self, lane: int, notes: torch.Tensor) -> None:
        """Replace the `notes [n, width]` about the lane's tokens."""
        everything = torch.arange(self.lengths[lane], device=notes.device)
        self.pages.write(lane, everything, {"notes": notes.clone()})  # notes may be a view of them

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the values [m, e] of a lane's `entries [m]`."""
        counts = [len(entries) if one == lane else 0 for one in range(self.shape.lanes)]
        values = values.to(self.shape.dtype).expand(self.shape.lanes, -1, -1)
        positions = self.positions(lane)[entries].expand(self.shape.lanes, -1)
        planes = self._encode(1, values, positions, counts)
        self.pages.write(lane, entries, {f"value.{name}": plane[lane] for name, plane in planes.items()})

    def add_mass(self, lane: int, mass: torch.Tensor) -> None:
        """Add `mass [n]` to what the lane's tokens have received so far."""
        everything = torch.arange(self.lengths[lane], device=mass.device)
        self.pages.write(lane, everything, {"mass": self.extras("mass", lane, lane + 1)[0] + mass[:, None]})

    def summaries(self, first: int, last: int, size: int, make: Summarise) -> torch.Tensor:
        """Of the whole blocks of `size` entries of a run of lanes: [h, blocks, ...], each made once by `make`."""
        return self._summaries.of(self, first, last, size, make)

    @property
    def summaries_nbytes(self) -> int:
        """Bytes of the summaries."""
        return self._summaries.nbytes

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """Keep of each lane only `entries[lane] [m]` (ascending indices); the memory of the rest returns, but for room
        such as a growing pool has."""
        for lane, chosen in enumerate(entries):
            if chosen.numel() and not 0 <= int(chosen[0]) <= int(chosen[-1]) < self.lengths[lane]:
                raise SessionError(
                    f"lane {lane} holds {self.lengths[lane]} tokens; cannot keep up to entry {int(chosen[-1])}"
                )
        self._summaries.clear()
        self.pages.keep(entries)

    def truncate(self, seen: Sequence[int]) -> None:
        """Forget every token of lane i at position >= seen[i]."""
        kept = [self.positions(lane) < limit if self.lengths[lane] else None for lane, limit in enumerate(seen)]
        counts = [0 if mask is None else int(mask.sum()) for mask in kept]
        self._summaries.clear()  # even where no token leaves: notes that they were made by may
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
        """A state to go back to while it is held: what later changes destroy is kept for it, nothing is copied now."""
        return Checkpoint((self.pages.checkpoint(),), (self._summaries.checkpoint(),))

    def fork(self: Own) -> Own:
        """An independent copy."""
        other = copy.copy(self)
        other.pages, other._summaries = self.pages.clone(), Summaries()
        return other

    def select(self, lanes: Sequence[int]) -> None:
        """Become a store of copies of these lanes, in whole batch rows; a lane may come several times."""
        rows = len(lanes) * self.shape.rows // self.shape.lanes
        self.pages.select(lanes)
        self.shape = replace(self.shape, lanes=len(lanes), rows=rows)
        self._summaries.clear()

    def permute_pages(self, generator: torch.Generator) -> None:
        """Shuffle the physical pages; nothing that is read may change (used by tests)."""
        self.pages.permute(torch.randperm(self.pages.starts[-1], generator=generator))

    def state(self) -> dict[str, torch.Tensor]:
        """Live entries only, lanes one after the other, plus the lengths: what `restore` reads."""
        lanes = [self.pages.read(lane, lane + 1) for lane in range(self.shape.lanes)]
        planes = {name: torch.cat([lane[name][0] for lane in lanes]) for name in self.shape.layout}
        return planes | {"lengths": torch.tensor(self.lengths)}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """Refuse a state that `restore` could not take over, of lanes that have seen[i] tokens: see `State`."""
        lengths = state.lengths(self.shape.lanes, seen)
        for name, (width, dtype) in self.shape.layout.items():
            state.take(name, dtype, [sum(lengths), width])
        state.positions(lengths, seen)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave, once it is as expected."""
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
        self._summaries.clear()

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
        prefix = ("key.", "value.")[part]
        return {name.removeprefix(prefix): plane for name, plane in planes.items() if name.startswith(prefix)}
