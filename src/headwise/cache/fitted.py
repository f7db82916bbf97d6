"""A store whose codecs write a lane's tokens by something that was fitted to its first: a basis, or a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.balanced import Balanced
from headwise.cache.codecs.lowrank import LowRank
from headwise.cache.journal import Checkpoint
from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.cache.state import State
from headwise.errors import SessionError

Own = TypeVar("Own", bound="FittedStore")


class FittedStore(PagedStore):
    """Keys, values or both by a codec that is fitted to the first tokens of a lane.

    fitted: of the keys and of the values, by lane. It stays as long as the lane holds any token.
    """

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        super().__init__(shape, device)
        self.fitted: list[list[torch.Tensor | None]] = [[None] * shape.lanes for _ in shape.codecs]

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        held = (one for side in self.fitted for one in side if one is not None)
        return super().nbytes + sum(one.untyped_storage().nbytes() for one in held)

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in PagedStore."""
        super().keep(entries)
        self._drop()

    def truncate(self, seen: Sequence[int]) -> None:
        """As in PagedStore."""
        super().truncate(seen)
        self._drop()

    def _drop(self) -> None:
        """Let go of what was fitted of lanes that hold nothing."""
        self.fitted = [[b if n else None for b, n in zip(side, self.lengths, strict=True)] for side in self.fitted]

    def checkpoint(self) -> Checkpoint:
        """As in PagedStore, with what was fitted."""
        fitted = [list(side) for side in self.fitted]

        def back() -> None:
            self.fitted = fitted

        return super().checkpoint() + Checkpoint((), (back,))

    def fork(self: Own) -> Own:
        """An independent copy."""
        other = super().fork()
        other.fitted = [list(side) for side in self.fitted]
        return other

    def select(self, lanes: Sequence[int]) -> None:
        """As in PagedStore."""
        super().select(lanes)
        self.fitted = [[side[lane] for lane in lanes] for side in self.fitted]

    def state(self) -> dict[str, torch.Tensor]:
        """As in PagedStore, with what was fitted."""
        return super().state() | {
            f"basis.{part}.{lane}": one
            for part, side in enumerate(self.fitted)
            for lane, one in enumerate(side)
            if one is not None
        }

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in PagedStore, with something fitted for every lane that holds tokens."""
        super().expect(state, seen)
        lengths = state.counts("lengths", self.shape.lanes)
        for part, (name, width) in enumerate(zip(self.shape.codecs, self.shape.widths, strict=True)):
            if isinstance(own := codec(name), LowRank | Balanced):
                sizes, dtype = own.fitted(width, self.shape.dtype)
                for lane in (lane for lane, length in enumerate(lengths) if length):
                    one = state.take(f"basis.{part}.{lane}", dtype, sizes)
                    if not bool(one.isfinite().all()):
                        raise SessionError(f"'basis.{part}.{lane}', which lane {lane} is written by, is not finite")

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        super().restore(state)
        device, lanes = self.pages.device, range(self.shape.lanes)
        found = [[state.get(f"basis.{part}.{lane}") for lane in lanes] for part in range(len(self.fitted))]
        self.fitted = [[None if one is None else one.to(device) for one in side] for side in found]
