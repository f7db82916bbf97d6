"""A store whose keys, values or both lie in a frame of the lane's own, in which rounding them costs least."""

from __future__ import annotations

from dataclasses import replace

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.balanced import Balanced
from headwise.cache.fitted import FittedStore
from headwise.cache.shape import Shape
from headwise.forms import Side


class BalancedStore(FittedStore):
    """Keys, values or both by a `Balanced` codec: what is fitted is a frame. Kernels read it in place, in the frame;
    whatever else is told of the keys and values is told as they came."""

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        super().__init__(shape, device)
        self.codecs = [own if isinstance(own := codec(name), Balanced) else None for name in shape.codecs]
        self._met: torch.Tensor | None = None
        self._centred = True

    @property
    def unfitted(self) -> bool:  # type: ignore[override]  # found out, where others know
        """As in KVStore."""
        return any(frame is None for own, side in zip(self.codecs, self.fitted, strict=True) if own for frame in side)

    def meet(self, energy: torch.Tensor, centred: bool) -> None:
        """As in KVStore."""
        self._met, self._centred = energy, centred

    def _fit(self, part: int, own: Balanced, lane: int, x: torch.Tensor) -> None:
        """Let a lane that has no frame yet have that of `x [n, width]`."""
        if self.fitted[part][lane] is None:
            met = self._met[lane] if self._met is not None and part == 0 else None
            self.fitted[part][lane] = own.fit(x, met, self._centred or part == 1)
            self.pages.renew()  # what was found of the pool holds the frames that there were

    def _encode(
        self, part: int, x: torch.Tensor, positions: torch.Tensor, counts: list[int]
    ) -> dict[str, torch.Tensor]:
        own = self.codecs[part]
        if own is None:
            return super()._encode(part, x, positions, counts)
        for lane, count in enumerate(counts):
            if count:
                self._fit(part, own, lane, x[lane, -count:])
        return own.encode(x, self._frames(part, 0, self.shape.lanes))

    def _decode(
        self, part: int, planes: dict[str, torch.Tensor], first: int, last: int, start: int = 0
    ) -> torch.Tensor:
        own = self.codecs[part]
        if own is None:
            return super()._decode(part, planes, first, last, start)
        return own.decode(self.side(part, planes), self._frames(part, first, last), self.shape.dtype)

    def _frames(self, part: int, first: int, last: int) -> torch.Tensor:
        """Frames [h, 2, width] of a run of lanes; one that changes nothing of those that hold nothing."""
        width = self.shape.widths[part]
        same = torch.stack((torch.zeros(width), torch.ones(width))).to(self.device)
        return torch.stack([same if one is None else one for one in self.fitted[part][first:last]])

    def _lies(self, part: int, first: int, last: int) -> Side:
        """As in PagedStore, with the frames of the lanes."""
        side, own = super()._lies(part, first, last), self.codecs[part]
        return side if own is None else replace(side, codec=own.inner, frames=self._frames(part, first, last))
