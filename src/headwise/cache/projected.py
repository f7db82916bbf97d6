"""A store whose keys, values or both lie as coefficients over a basis of the lane's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.lowrank import LowRank, low_rank
from headwise.cache.journal import Checkpoint
from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.cache.state import State


class ProjectedStore(PagedStore):
    """Keys, values or both by a `LowRank` codec. A lane's basis is fitted to the first tokens that come to it, stays as
    long as it holds any, and goes with the last."""

    beside = ("position",)

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        super().__init__(shape, device)
        self.codecs = [low_rank(name) for name in shape.codecs]
        self.bases: list[list[torch.Tensor | None]] = [[None] * shape.lanes for _ in shape.codecs]

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        held = (basis for side in self.bases for basis in side if basis is not None)
        return super().nbytes + sum(basis.untyped_storage().nbytes() for basis in held)

    def _encode(
        self, part: int, x: torch.Tensor, positions: torch.Tensor, counts: list[int]
    ) -> dict[str, torch.Tensor]:
        own = self.codecs[part]
        if own is None:
            return super()._encode(part, x, positions, counts)
        coefficients = x.new_zeros(*x.shape[:2], own.rank(x.shape[2]))
        for lane, count in enumerate(counts):
            new = slice(x.shape[1] - count, x.shape[1])
            if count:
                vectors = self._unturned(own, x[lane, new], positions[lane, new])
                basis = self.bases[part][lane]
                if basis is None:
                    basis = self.bases[part][lane] = own.fit(vectors)
                coefficients[lane, new] = own.encode(vectors, basis)
        return codec(own.inner).encode(coefficients)

    def _decode(
        self, part: int, planes: dict[str, torch.Tensor], first: int, last: int, start: int = 0
    ) -> torch.Tensor:
        own = self.codecs[part]
        if own is None:
            return super()._decode(part, planes, first, last, start)
        vectors = self._recovered(own, part, planes, slice(first, last), slice(None))
        if own.unrotated and self.shape.rope is not None:
            return self.shape.rope.rotate(vectors, planes["position"][..., 0])
        return vectors

    def channels(self, part: int, lanes: slice, channels: slice) -> torch.Tensor:
        """Some channels of the keys (part 0) or the values (1) of a run of lanes of equal length, as they were written:
        [lanes, n, channels]."""
        planes, own = self.pages.read(lanes.start, lanes.stop, ("key.", "value.")[part]), self.codecs[part]
        if own is None:
            return super()._decode(part, planes, lanes.start, lanes.stop)[..., channels]
        return self._recovered(own, part, planes, lanes, channels)

    def _recovered(
        self, own: LowRank, part: int, planes: dict[str, torch.Tensor], lanes: slice, channels: slice
    ) -> torch.Tensor:
        """The `channels` of vectors [lanes, n, channels] from their coefficients."""
        coefficients = codec(own.inner).decode(self.side(part, planes), torch.float32)
        bases = [basis[channels] for basis in self.bases[part][lanes] if basis is not None]
        if not bases:
            width = len(range((self.shape.key_width, self.shape.value_width)[part])[channels])
            return coefficients.new_zeros(lanes.stop - lanes.start, 0, width, dtype=self.shape.dtype)
        return own.decode(coefficients, torch.stack(bases), self.shape.dtype)

    def _unturned(self, own: LowRank, vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if own.unrotated and self.shape.rope is not None:
            return self.shape.rope.unrotate(vectors, positions)
        return vectors

    def keep(self, entries: Sequence[torch.Tensor]) -> None:
        """As in PagedStore."""
        super().keep(entries)
        self._drop()

    def truncate(self, seen: Sequence[int]) -> None:
        """As in PagedStore."""
        super().truncate(seen)
        self._drop()

    def _drop(self) -> None:
        """Let go of the bases of lanes that hold nothing."""
        self.bases = [[b if n else None for b, n in zip(side, self.lengths, strict=True)] for side in self.bases]

    def checkpoint(self) -> Checkpoint:
        """As in PagedStore, with the bases."""
        bases = [list(side) for side in self.bases]

        def back() -> None:
            self.bases = bases

        return super().checkpoint() + Checkpoint((), (back,))

    def fork(self) -> ProjectedStore:
        """An independent copy."""
        other = super().fork()
        other.bases = [list(side) for side in self.bases]
        return other

    def select(self, lanes: Sequence[int]) -> None:
        """As in PagedStore."""
        super().select(lanes)
        self.bases = [[side[lane] for lane in lanes] for side in self.bases]

    def state(self) -> dict[str, torch.Tensor]:
        """As in PagedStore, with the bases."""
        return super().state() | {
            f"basis.{part}.{lane}": basis
            for part, side in enumerate(self.bases)
            for lane, basis in enumerate(side)
            if basis is not None
        }

    def expect(self, state: State, seen: Sequence[int]) -> None:
        """As in PagedStore, with a basis for every lane that holds tokens."""
        super().expect(state, seen)
        lengths = state.counts("lengths", self.shape.lanes)
        for part, width in enumerate((self.shape.key_width, self.shape.value_width)):
            if (own := self.codecs[part]) is not None:
                for lane in (lane for lane, length in enumerate(lengths) if length):
                    state.take(f"basis.{part}.{lane}", self.shape.dtype, [width, own.rank(width)])

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state()` gave."""
        super().restore(state)
        device, lanes = self.pages.device, range(self.shape.lanes)
        found = [[state.get(f"basis.{part}.{lane}") for lane in lanes] for part in range(len(self.codecs))]
        self.bases = [[None if basis is None else basis.to(device) for basis in side] for side in found]
