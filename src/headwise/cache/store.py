"""The keys and values of one group of heads of one layer, with their true positions. Appends, keeps, truncates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headwise.attention.paged import Paged, Side
from headwise.attention.view import PageBounds
from headwise.cache.codecs import codec
from headwise.cache.codecs.channels import CHANNELS
from headwise.cache.pages import PAGE, Layout, Pages, pages_for
from headwise.errors import SessionError


@dataclass(frozen=True)
class Shape:
    """What a store holds: `lanes` (batch rows x KV heads) of vectors in `dtype`, by which codecs.

    `with_mass` adds one float32 per token for attention mass accumulated over the queries so far, `notes` as many as an
    eviction method writes down about each token.
    """

    lanes: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    codecs: tuple[str, str] = ("plain", "plain")
    with_mass: bool = False
    notes: int = 0

    @property
    def layout(self) -> Layout:
        """Planes of a token: encoded key, encoded value, position, and mass where it is asked for."""
        key, value = CHANNELS.get(self.codecs[0]) or codec(self.codecs[0]), codec(self.codecs[1])
        planes = {f"key.{name}": plane for name, plane in key.planes(self.key_width, self.dtype).items()}
        planes |= {f"value.{name}": plane for name, plane in value.planes(self.value_width, self.dtype).items()}
        planes["position"] = (1, torch.int32)
        return planes | self.remembered

    @property
    def remembered(self) -> Layout:
        """Planes of what is remembered of a token besides itself; 0 for a new one."""
        widths = {"mass": int(self.with_mass), "notes": self.notes}
        return {name: (width, torch.float32) for name, width in widths.items() if width}

    def nbytes(self, counts: Sequence[int]) -> int:
        """Bytes that lanes of `counts` tokens take, whole pages, with what groups of tokens share."""
        token = sum(width * dtype.itemsize for width, dtype in self.layout.values())
        shared, total = CHANNELS.get(self.codecs[0]), sum(pages_for(count) for count in counts) * PAGE * token
        if shared is not None:
            total += sum(-(-count // shared.tokens) for count in counts) * shared.group_bytes(self.key_width)
        return total


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
    """Per-head page tables over one pool. Kept tokens (`lengths`) and true positions are two things."""

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.pages = Pages(shape.lanes, shape.layout, torch.device(device))
        self._bounds: dict[int, PageBounds] = {}

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
        bounds = (t for b in self._bounds.values() for t in (b.minimum, b.maximum))
        return self.pages.nbytes + sum(t.untyped_storage().nbytes() for t in bounds)

    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring lanes [first, last) that hold equally many tokens and can be read as one tensor."""
        return self.pages.runs()

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """Bytes for lanes of `counts` tokens, at the one level there is, whole pages."""
        return self.shape.nbytes([count for (count,) in counts])

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        remembered: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add keys [lanes, t, d], values [lanes, t, e] at positions [lanes, t]; of lane i only the last counts[i].

        remembered: planes [lanes, t, width] of `shape.remembered` that the tokens bring along, 0 by default.
        """
        planes = self._planes(codec(self.shape.codecs[0]).encode(keys), values, positions)
        self.pages.append(planes | (remembered or {}), counts)

    def segments(self) -> list[Segment]:
        """Everything stored, decoded, as few tensors as equal lengths allow. Plain codecs give views, not copies."""
        return [self.segment(first, last) for first, last in self.pages.runs() if self.lengths[first]]

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """The lanes [first, last), which must hold equally many tokens; only their entries before `stop` when given."""
        if len(set(self.lengths[first:last])) > 1:
            raise SessionError(f"lanes {first} to {last} hold {self.lengths[first:last]} tokens, not equally many")
        planes = {name: plane[:, :stop] for name, plane in self.pages.read(first, last).items()}
        keys, values = self._keys(planes, first, last), self._decode(planes, 1)
        return Segment(first, last, keys, values, planes["position"][..., 0])

    def paged(self, first: int, last: int, stop: int | None = None) -> Paged:
        """The lanes [first, last) as they lie, for attention to read in place: valid until the store changes.

        stop: only their entries before it, when given.
        """
        pages = self.pages
        keys, values = (
            Side(name, width, {k.removeprefix(part): plane for k, plane in pages.planes.items() if k.startswith(part)})
            for name, part, width in zip(
                self.shape.codecs, ("key.", "value."), (self.shape.key_width, self.shape.value_width), strict=True
            )
        )

        def dense() -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
            cut = ((max(a, first), min(b, last)) for a, b in pages.runs() if a < last and b > first)
            segments = [self.segment(a, b, stop) for a, b in cut]
            return [(slice(one.first - first, one.last - first), one.keys, one.values) for one in segments]

        lengths = tuple(n if stop is None else min(n, stop) for n in pages.lengths[first:last])
        starts = tuple(pages.starts[first:last])
        return Paged(keys, values, lengths, starts, pages.table, PAGE, dense)

    def positions(self, lane: int) -> torch.Tensor:
        """True positions [n] of a lane's tokens, ascending."""
        return self.pages.read(lane, lane + 1)["position"][0, :, 0]

    def remembered(self, name: str, first: int, last: int) -> torch.Tensor:
        """What is remembered [h, n, width] of the tokens of a run of lanes of equal length: "mass" or "notes"."""
        return self.pages.read(first, last)[name]

    def mass(self, first: int, last: int) -> torch.Tensor:
        """Accumulated attention mass [h, n] of a run of lanes of equal length."""
        return self.remembered("mass", first, last)[..., 0]

    def note(self, lane: int, notes: torch.Tensor) -> None:
        """Replace the `notes [n, width]` about the lane's tokens."""
        slots = self.pages.slots(lane, torch.arange(self.lengths[lane], device=notes.device))
        self.pages.planes["notes"].flatten(0, 1)[slots] = notes.clone()  # notes may be a view of them

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """Replace the values [m, e] of a lane's `entries [m]`."""
        slots = self.pages.slots(lane, entries)
        for name, plane in codec(self.shape.codecs[1]).encode(values.to(self.shape.dtype)).items():
            self.pages.planes[f"value.{name}"].flatten(0, 1)[slots] = plane

    def add_mass(self, lane: int, mass: torch.Tensor) -> None:
        """Add `mass [n]` to what the lane's tokens have received so far."""
        slots = self.pages.slots(lane, torch.arange(self.lengths[lane], device=mass.device))
        self.pages.planes["mass"].flatten(0, 1)[slots, 0] += mass

    def bounds(self, first: int, last: int) -> PageBounds:
        """Per page and channel the smallest and largest key element of a run of lanes (Quest, 2406.10774, 3.2).

        Whole pages are computed once; only the page being filled is computed again at each call.
        """
        keys = self.segment(first, last).keys
        stored, whole = keys.shape[1], keys.shape[1] // PAGE
        known = self._bounds.get(first)
        done = 0 if known is None else min(known.minimum.shape[1], whole)
        pieces = [] if known is None or done == 0 else [(known.minimum[:, :done], known.maximum[:, :done])]
        if whole > done:
            new = keys[:, done * PAGE : whole * PAGE].unflatten(1, (-1, PAGE))
            pieces.append((new.amin(2), new.amax(2)))
        full = tuple(torch.cat([piece[side] for piece in pieces], dim=1) for side in (0, 1)) if pieces else None
        if full is not None:
            self._bounds[first] = PageBounds(full[0], full[1], PAGE)
        if stored > whole * PAGE:
            rest = keys[:, whole * PAGE :]
            tail = (rest.amin(1, keepdim=True), rest.amax(1, keepdim=True))
            full = tail if full is None else (torch.cat((full[0], tail[0]), 1), torch.cat((full[1], tail[1]), 1))
        assert full is not None, "bounds of an empty run are never asked for"
        return PageBounds(full[0], full[1], PAGE)

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """Keep of each lane only `entries[lane] [m]` (ascending indices); the memory of the rest returns at once."""
        for lane, chosen in enumerate(entries):
            if chosen.numel() and not 0 <= int(chosen[0]) <= int(chosen[-1]) < self.lengths[lane]:
                raise SessionError(
                    f"lane {lane} holds {self.lengths[lane]} tokens; cannot keep up to entry {int(chosen[-1])}"
                )
        self._bounds.clear()
        self.pages.rebuild(entries)

    def truncate(self, seen: Sequence[int]) -> None:
        """Forget every token of lane i at position >= seen[i]."""
        counts = [
            int(torch.searchsorted(self.positions(lane).contiguous(), limit)) if self.lengths[lane] else 0
            for lane, limit in enumerate(seen)
        ]
        if counts == self.lengths:
            return
        self._bounds.clear()
        self.pages.lengths = counts
        if sum(map(pages_for, counts)) < 0.9 * sum(self.pages.capacities):
            self.pages.rebuild(None, [pages_for(count) for count in counts])

    def fork(self) -> Store:
        """An independent copy."""
        other = Store(self.shape, self.pages.device)
        other.pages = self.pages.clone()
        return other

    def permute_pages(self, generator: torch.Generator) -> None:
        """Shuffle the physical pages; nothing that is read may change (used by tests)."""
        self.pages.permute(torch.randperm(self.pages.starts[-1], generator=generator))

    def state(self) -> dict[str, torch.Tensor]:
        """Live entries only, lanes one after the other, plus the lengths: what `restore` reads."""
        lanes = [self.pages.read(lane, lane + 1) for lane in range(self.shape.lanes)]
        planes = {name: torch.cat([lane[name][0] for lane in lanes]) for name in self.shape.layout}
        return planes | {"lengths": torch.tensor(self.lengths)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        lengths = state["lengths"].tolist()
        longest = max(lengths, default=0)
        pages = Pages(self.shape.lanes, self.shape.layout, self.pages.device)
        rows = {name: state[name].to(pages.device).split(lengths) for name in self.shape.layout}
        padded = {
            name: torch.stack([torch.cat((row.new_zeros(longest - len(row), row.shape[1]), row)) for row in parts])
            for name, parts in rows.items()
        }
        if longest:
            pages.append(padded, lengths)
        self.pages = pages
        self._bounds.clear()

    def _planes(
        self, keys: dict[str, torch.Tensor], values: torch.Tensor, positions: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """All planes of new tokens, from the planes of their keys."""
        planes = {f"key.{name}": plane for name, plane in keys.items()}
        planes |= {f"value.{name}": plane for name, plane in codec(self.shape.codecs[1]).encode(values).items()}
        planes["position"] = positions[..., None].to(torch.int32)
        for name, (width, dtype) in self.shape.remembered.items():
            planes[name] = torch.zeros((*positions.shape, width), dtype=dtype, device=positions.device)
        return planes

    def _keys(self, planes: dict[str, torch.Tensor], first: int, last: int) -> torch.Tensor:
        """Keys [h, n, d] of the lanes [first, last) from their planes."""
        return self._decode(planes, 0)

    def _decode(self, planes: dict[str, torch.Tensor], part: int) -> torch.Tensor:
        prefix = ("key.", "value.")[part]
        own = {name.removeprefix(prefix): plane for name, plane in planes.items() if name.startswith(prefix)}
        return codec(self.shape.codecs[part]).decode(own, self.shape.dtype)
