"""One layer's share of tokens that lie once for all heads of several layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from headwise.cache.codecs.lowrank import low_rank
from headwise.cache.journal import Checkpoint
from headwise.cache.kv_store import KVStore, Segment, check_entries
from headwise.cache.projected import ProjectedStore
from headwise.cache.shape import Shape
from headwise.cache.state import State
from headwise.cache.summaries import Summaries
from headwise.errors import SessionError


class SpannedStore(KVStore):
    """The coarse level of one layer of a `Span` (xKV, 2503.18893): its own channels of what lies in the span's factor.

    factor: one row of coefficients by token; its lanes are batch rows. channels: of its keys and of its values, those
    of this layer. first: whether this is the span's first layer, to which bytes and state of the factor are counted,
    and which cuts, selects and permutes it for all; the others see what became of it. Tokens come and copies are made
    by the `Span`, unless the layer is alone in its own.
    """

    def __init__(self, shape: Shape, factor: ProjectedStore, channels: tuple[slice, slice], first: bool = True) -> None:
        self.shape, self.device, self.summaries = shape, factor.device, Summaries()
        self.factor, self.channels, self.first = factor, channels, first
        self.heads = shape.heads
        self._rope = shape.rope if low_rank(shape.codecs[0]) is not None else None

    @property
    def lengths(self) -> list[int]:
        """As in KVStore."""
        return [length for length in self.factor.lengths for _ in range(self.heads)]

    @property
    def nbytes(self) -> int:
        """As in KVStore, of all layers in the first."""
        return self.factor.nbytes if self.first else 0

    def runs(self) -> list[tuple[int, int]]:
        """As in KVStore."""
        return [(first * self.heads, last * self.heads) for first, last in self.factor.runs()]

    def predicted(self, counts: Sequence[tuple[int, ...]]) -> int:
        """As in KVStore, of all layers in the first."""
        return self.factor.predicted(counts[:: self.heads]) if self.first else 0

    def accepted(self, count: int, held: int = 0) -> int:
        """As in KVStore; none where they would take more than they save in all layers together."""
        return self.factor.accepted(count, held)

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        counts: list[int] | None = None,
        extras: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """As in KVStore; SessionError where other layers have a share of the same tokens."""
        self._refuse_others("take tokens")
        counts = counts if counts is not None else [keys.shape[1]] * self.shape.lanes
        by_row = positions[:: self.heads]
        self.factor.append(*self.as_rows(keys, values, by_row), by_row, counts[:: self.heads])

    def as_rows(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [lanes, t, d], turned back, and values [lanes, t, e] as vectors of whole rows, [rows, t, width], of
        tokens at positions [rows, t]."""
        if self._rope is not None:
            keys = self._rope.unrotate(keys, positions.repeat_interleave(self.heads, 0))
        by_row = [x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2) for x in (keys, values)]
        return by_row[0], by_row[1]

    def _share(self, part: int, first: int, last: int) -> torch.Tensor:
        """Keys before the rotary embedding (part 0) or values (1) [h, n, width] of the lanes [first, last)."""
        rows = slice(first // self.heads, -(-last // self.heads))
        wide = self.factor.channels(part, rows, self.channels[part])
        by_lane = wide.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
        return by_lane[first - rows.start * self.heads : last - rows.start * self.heads]

    def keys(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in KVStore."""
        keys = self._share(0, first, last)[:, start:]
        return keys if self._rope is None else self._rope.rotate(keys, self.positions_of(first, last)[:, start:])

    def values(self, first: int, last: int, start: int = 0) -> torch.Tensor:
        """As in KVStore."""
        return self._share(1, first, last)[:, start:]

    def segment(self, first: int, last: int, stop: int | None = None) -> Segment:
        """As in KVStore."""
        held = (self.keys(first, last), self.values(first, last), self.positions_of(first, last))
        return Segment(first, last, *(x[:, :stop] for x in held))

    def positions_of(self, first: int, last: int) -> torch.Tensor:
        """As in KVStore."""
        rows = (first // self.heads, -(-last // self.heads))
        by_lane = self.factor.positions_of(*rows).repeat_interleave(self.heads, 0)
        return by_lane[first - rows[0] * self.heads : last - rows[0] * self.heads]

    def extras(self, name: str, first: int, last: int) -> torch.Tensor:
        """SessionError: nothing is noted of single heads' tokens, as none of them is evicted."""
        raise SessionError(f"tokens that lie together for several layers have no '{name}'; evict nothing")

    def write_extras(self, name: str, lane: int, numbers: torch.Tensor) -> None:
        """SessionError, as `extras`."""
        self.extras(name, lane, lane + 1)

    def revalue(self, lane: int, entries: torch.Tensor, values: torch.Tensor) -> None:
        """SessionError: a value is part of a vector of all heads and layers."""
        raise SessionError("values that lie together for several layers cannot be replaced in one; evict nothing")

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """Nothing, where every lane keeps all; SessionError otherwise, as heads and layers share their tokens."""
        check_entries(self, entries)
        if [len(chosen) for chosen in entries] != self.lengths:
            raise SessionError("tokens that lie together for several layers cannot leave single heads; evict nothing")

    def truncate(self, seen: Sequence[int]) -> None:
        """As in KVStore, of all layers with the first."""
        self.summaries.clear()
        if self.first:
            self.factor.truncate(seen[:: self.heads])

    def select(self, lanes: Sequence[int]) -> None:
        """As in KVStore, of all layers with the first."""
        self.summaries.clear()
        if self.first:
            self.factor.select([lane // self.heads for lane in lanes[:: self.heads]])
        self.shape = replace(self.shape, lanes=len(lanes), rows=len(lanes) // self.heads)

    def permute_pages(self, generator: torch.Generator) -> None:
        """As in KVStore, of all layers with the first."""
        if self.first:
            self.factor.permute_pages(generator)

    def fork(self) -> SpannedStore:
        """As in KVStore; SessionError where other layers have a share of the same tokens."""
        self._refuse_others("be copied")
        other = copy.copy(self)
        other.factor, other.summaries = self.factor.fork(), Summaries()
        return other

    def _refuse_others(self, what: str) -> None:
        widths = [x.stop - x.start for x in self.channels]
        if widths != [self.factor.shape.key_width, self.factor.shape.value_width]:
            raise SessionError(f"a layer whose tokens lie with those of others cannot {what} by itself; ask its Span")

    def checkpoint(self) -> Checkpoint:
        """As in KVStore, of all layers with the first."""
        own = Checkpoint((), (self.summaries.checkpoint(),))
        return own + self.factor.checkpoint() if self.first else own

    def state(self) -> dict[str, torch.Tensor]:
        """As in KVStore, of all layers in the first."""
        return self.factor.state() if self.first else {}

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in KVStore, of all layers in the first."""
        if self.first:
            self.factor.expect(state, seen[:: self.heads])

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """As in KVStore, of all layers in the first."""
        self.summaries.clear()
        if self.first:
            self.factor.restore(state)
