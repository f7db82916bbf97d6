"""A store whose keys lie without the channels of their lane that matter least."""

from __future__ import annotations

import torch

from headwise.cache.codecs.lowrank import LowRank
from headwise.cache.codecs.pruned import Pruned
from headwise.cache.projected import ProjectedStore
from headwise.cache.shape import Shape


class PrunedStore(ProjectedStore):
    """Keys, values or both by a `Pruned` codec. Which channels of the keys stay hangs on the queries as well."""

    def __init__(self, shape: Shape, device: torch.device | str = "cpu") -> None:
        super().__init__(shape, device)
        self._met: torch.Tensor | None = None

    @property
    def unfitted(self) -> bool:  # type: ignore[override]  # found out, where others know
        """As in KVStore."""
        return any(basis is None for own, side in zip(self.codecs, self.fitted, strict=True) if own for basis in side)

    def meet(self, energy: torch.Tensor, centred: bool) -> None:
        """As in KVStore."""
        self._met = energy

    def _fit(self, own: LowRank, part: int, lane: int, vectors: torch.Tensor) -> torch.Tensor:
        met = self._met[lane] if self._met is not None and part == 0 else None
        return own.fit(vectors, met) if isinstance(own, Pruned) else own.fit(vectors)
