"""Tokens that lie once for all heads of several layers: one row of coefficients for what all of these hold of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from headwise.cache.codecs.lowrank import low_rank
from headwise.cache.journal import Checkpoint
from headwise.cache.pages import PAGE, Pages
from headwise.cache.projected import ProjectedStore
from headwise.cache.state import State
from headwise.cache.store import Segment, Shape, Store
from headwise.errors import SessionError
from headwise.forms import Paged, Side


class SpannedStore(Store):
    """One layer's share of a span of layers, the coarse level of each (xKV, 2503.18893).

    What the span's layers hold of a token lies side by side as one vector in the `factor`, whose lanes are batch rows.
    It counts as the first layer's. Tokens come with the last layer, which takes what the others hold of the same
    tokens from their finer stores; until then these stay as they are. A layer on its own is a span of one.
    """

    first: bool
    last: bool
    others: list[tuple[Store, SpannedStore]]  # finer store and share of the layers before, known to the last
    channels: tuple[slice, slice]  # of the factor's keys and values, those of this layer

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        self.shape, self.device, self.heads = shape, torch.device(device), shape.lanes // shape.rows
        self.factor = ProjectedStore(_wide([shape]), device)
        self.turn = shape.rope if low_rank(shape.codecs[0]) is not None else None
        join([[self]])

    @property
    def pages(self) -> Pages:  # type: ignore[override]
        """The factor's."""
        return self.factor.pages

    @property
    def lengths(self) -> list[int]:
        """Tokens stored, by lane."""
        return [length for length in self.factor.lengths for _ in range(self.heads)]

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages, of all layers in the first."""
        return self.factor.nbytes if self.first else 0

    def runs(self) -> list[tuple[int, int]]:
        """As in Store."""
        return [(first * self.heads, last * self.heads) for first, last in self.factor.runs()]

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """As in Store, of all layers in the first."""
        return self.factor.predicted(counts[:: self.heads]) if self.first else 0

    def taken(self, count: int) -> int:
        """As in Store; none where they would take more than they save in all layers together."""
        return self.factor.taken(count)

    def takes(self, lane: int, count: int) -> int:
        """As in Store; none before the last layer has come."""
        return self.factor.takes(lane // self.heads, count) if self.last else 0

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        extras: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Add what all layers of the span hold of some tokens, given the last one's: as in Store."""
        each = counts if counts is not None else [keys.shape[1]] * self.shape.lanes
        by_row, counts = positions[:: self.heads], each[:: self.heads]
        pieces = [other._side_by_side(*other._given(finer, by_row, counts), by_row) for finer, other in self.others]
        pieces.append(self._side_by_side(keys, values, by_row))
        wide_keys, wide_values = (torch.cat(side, dim=2) for side in zip(*pieces, strict=True))
        self.factor.append(wide_keys, wide_values, by_row, counts)

    def _given(self, finer: Store, positions: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [lanes, t, d] and values [lanes, t, e] that leave the finer store, those of the last counts[row] of
        positions [rows, t]; the others are 0."""
        keys, values, rest = [], [], []
        for row, count in enumerate(counts):
            lanes, room = (row * self.heads, (row + 1) * self.heads), positions.shape[1] - count
            gone = torch.isin(finer.positions(lanes[0]), positions[row, room:])
            held = finer.segment(*lanes)
            keys.append(torch.nn.functional.pad(held.keys[:, gone], (0, 0, room, 0)))
            values.append(torch.nn.functional.pad(held.values[:, gone], (0, 0, room, 0)))
            rest += [(~gone).nonzero()[:, 0]] * self.heads
        finer.keep(rest)
        return torch.cat(keys), torch.cat(values)

    def _side_by_side(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [lanes, t, d], turned back, and values [lanes, t, e] as vectors of whole rows, [rows, t, width]."""
        if self.turn is not None:
            keys = self.turn.unrotate(keys, positions.repeat_interleave(self.heads, 0))
        by_row = [x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2) for x in (keys, values)]
        return by_row[0], by_row[1]

    def _share(self, part: int, first: int, last: int) -> torch.Tensor:
        """Keys before the rotary embedding (part 0) or values (1) [h, n, width] of the lanes [first, last)."""
        rows = slice(first // self.heads, -(-last // self.heads))
        wide = self.factor.channels(part, rows, self.channels[part])
        by_lane = wide.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
        return by_lane[first - rows.start * self.heads : last - rows.start * self.heads]

    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in Store."""
        keys = self._share(0, first, last)[:, start:]
        return keys if self.turn is None else self.turn.rotate(keys, self.positions_of(first, last)[:, start:])

    def values(self, first: int, last: int) -> torch.Tensor:
        """As in Store."""
        return self._share(1, first, last)

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """As in Store."""
        held = (self.keys(first, last), self.values(first, last), self.positions_of(first, last))
        return Segment(first, last, *(x[:, :stop] for x in held))

    def paged(self, first: int, last: int, stop: int | None = None) -> Paged:
        """As in Store, to be read decoded: planes of single heads there are none."""
        shape = self.shape
        keys, values = Side(shape.codecs[0], shape.key_width, {}), Side(shape.codecs[1], shape.value_width, {})
        lengths = tuple(n if stop is None else min(n, stop) for n in self.lengths[first:last])
        return Paged(keys, values, lengths, (0,) * len(lengths), None, PAGE, lambda: self._dense(first, last, stop))

    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """As in Store."""
        return self.extras("position", first, last)[..., 0]

    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """As in Store."""
        rows = (first // self.heads, -(-last // self.heads))
        by_lane = self.factor.extras(name, *rows).repeat_interleave(self.heads, 0)
        return by_lane[first - rows[0] * self.heads : last - rows[0] * self.heads]

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """Nothing, where every lane keeps all; SessionError otherwise, as heads and layers share their tokens."""
        if [len(chosen) for chosen in entries] != self.lengths:
            raise SessionError("tokens that lie together for several layers cannot leave single heads; evict nothing")

    def truncate(self, seen: Sequence[int]) -> None:
        """As in Store, of all layers with the first."""
        if self.first:
            self.factor.truncate(seen[:: self.heads])

    def checkpoint(self) -> Checkpoint:
        """As in Store, of all layers with the first."""
        return self.factor.checkpoint() if self.first else Checkpoint((), ())

    def fork(self) -> SpannedStore:
        """An independent copy; of a layer that is not the first once it is joined with that one's copy."""
        other = copy.copy(self)
        other.factor = self.factor.fork() if self.first else self.factor
        return other

    def select(self, lanes: Sequence[int]) -> None:
        """As in Store, of all layers with the first."""
        if self.first:
            self.factor.select([lane // self.heads for lane in lanes[:: self.heads]])
        self.shape = replace(self.shape, lanes=len(lanes), rows=len(lanes) // self.heads)

    def permute_pages(self, generator: torch.Generator) -> None:
        """As in Store, of all layers with the first."""
        if self.first:
            self.factor.permute_pages(generator)

    def state(self) -> dict[str, torch.Tensor]:
        """As in Store, of all layers in the first."""
        return self.factor.state() if self.first else {}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in Store, of all layers in the first."""
        if self.first:
            self.factor.expect(state, seen[:: self.heads])

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        if self.first:
            self.factor.restore(state)


def _wide(shapes: Sequence[Shape]) -> Shape:
    """The shape of the factor of layers of these shapes."""
    first = shapes[0]
    key = sum(shape.lanes // shape.rows * shape.key_width for shape in shapes)
    value = sum(shape.lanes // shape.rows * shape.value_width for shape in shapes)
    return Shape(first.rows, key, value, first.dtype, first.codecs, rows=first.rows)


def join(layers: Sequence[Sequence[Store]]) -> None:
    """Let layers be a span: of each, its stores of one group of heads, the finest first and a `SpannedStore` last.

    The span goes on with what the first layer holds, if that is of all of them (in copies it is).
    """
    shares = [stores[-1] for stores in layers if isinstance(stores[-1], SpannedStore)]
    shape = _wide([share.shape for share in shares])
    factor = shares[0].factor
    if factor.shape != shape:
        factor = ProjectedStore(shape, shares[0].device)
    key = value = 0
    for share in shares:
        share.factor, share.first, share.last, share.others = factor, share is shares[0], share is shares[-1], []
        widths = share.heads * share.shape.key_width, share.heads * share.shape.value_width
        share.channels = slice(key, key + widths[0]), slice(value, value + widths[1])
        key, value = key + widths[0], value + widths[1]
    shares[-1].others = [(stores[0], share) for stores, share in zip(layers, shares, strict=True)][:-1]
