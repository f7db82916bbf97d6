"""A store whose keys, values or both lie as coefficients over a basis of the lane's own."""

from __future__ import annotations

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.lowrank import LowRank, low_rank
from headwise.cache.fitted import FittedStore
from headwise.cache.shape import SIDES, Shape


class ProjectedStore(FittedStore):
    """Keys, values or both by a `LowRank` codec: what is fitted is a basis of the lane's own."""

    beside = ("position",)

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        super().__init__(shape, device)
        self.codecs = [low_rank(name) for name in shape.codecs]

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
                basis = self.fitted[part][lane]
                if basis is None:
                    basis = self.fitted[part][lane] = self._fit(own, part, lane, vectors)
                coefficients[lane, new] = own.encode(vectors, basis)
        return codec(own.inner).encode(coefficients)

    def _fit(self, own: LowRank, part: int, lane: int, vectors: torch.Tensor) -> torch.Tensor:
        """The basis of a lane whose first vectors [n, width] these are."""
        return own.fit(vectors)

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
        planes, own = self.pages.read(lanes.start, lanes.stop, SIDES[part]), self.codecs[part]
        if own is None:
            return super()._decode(part, planes, lanes.start, lanes.stop)[..., channels]
        return self._recovered(own, part, planes, lanes, channels)

    def _recovered(
        self, own: LowRank, part: int, planes: dict[str, torch.Tensor], lanes: slice, channels: slice
    ) -> torch.Tensor:
        """The `channels` of vectors [lanes, n, channels] from their coefficients."""
        coefficients = codec(own.inner).decode(self.side(part, planes), torch.float32)
        bases = [basis[channels] for basis in self.fitted[part][lanes] if basis is not None]
        if not bases:
            width = len(range(self.shape.widths[part])[channels])
            return coefficients.new_zeros(lanes.stop - lanes.start, 0, width, dtype=self.shape.dtype)
        return own.decode(coefficients, torch.stack(bases), self.shape.dtype)

    def _unturned(self, own: LowRank, vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if own.unrotated and self.shape.rope is not None:
            return self.shape.rope.unrotate(vectors, positions)
        return vectors
