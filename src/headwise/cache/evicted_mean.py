"""What was evicted, in one pair by lane: mean key and mean value, read with the weight of as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from headwise.cache.shape import Shape
from headwise.forms import Attended, Scoring


@dataclass(frozen=True, eq=False)
class EvictedMean:
    """Mean `keys [lanes, d]` and `values [lanes, e]`, float32, of `counts [lanes]` evicted tokens, of which `last
    [lanes]` is the latest position (-1 without any). Filled in place."""

    keys: torch.Tensor
    values: torch.Tensor
    counts: torch.Tensor
    last: torch.Tensor

    @classmethod
    def none(cls, shape: Shape, device: torch.device) -> EvictedMean:
        """Nothing evicted yet, for a store of this shape."""
        keys = torch.zeros(shape.lanes, shape.key_width, device=device)
        values = torch.zeros(shape.lanes, shape.value_width, device=device)
        counts = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        return cls(keys, values, counts, torch.full_like(counts, -1))

    def add(self, lane: int, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        """Take in what is evicted of a lane now: keys [m, d], values [m, e], positions [m]."""
        if not len(positions):
            return
        self.counts[lane] += len(positions)
        share = len(positions) / self.counts[lane]
        for mean, new in ((self.keys, keys), (self.values, values)):
            mean[lane] += (new.float().mean(0) - mean[lane]) * share
        self.last[lane] = torch.maximum(self.last[lane], positions.max())

    def attended(self, q: torch.Tensor, lanes: slice, scoring: Scoring) -> Attended:
        """What queries [h, g, t, d] of some lanes read of it: one key whose score counts as often as tokens went in
        (RazorAttention, 2407.15891, equation 5). All of it comes before the queries."""
        scores = scoring.capped(torch.einsum("hgtd,hd->hgt", q.float() * scoring.scale, self.keys[lanes]))
        counts = self.counts[lanes, None, None]
        out = (self.values[lanes, None, None] * (counts > 0)[..., None]).expand(*q.shape[:3], -1)
        return Attended(out.to(q.dtype), scores + counts.log())

    def truncate(self, limits: Sequence[int]) -> None:
        """Forget the pair of every lane i that holds a token at or past limits[i]: a mean cannot be taken apart."""
        gone = self.last >= torch.tensor(list(limits), device=self.last.device)
        for field in fields(self):
            getattr(self, field.name)[gone] = -1 if field.name == "last" else 0

    def select(self, lanes: Sequence[int]) -> EvictedMean:
        """A copy of these lanes."""
        return EvictedMean(**{name: one[list(lanes)] for name, one in self.state().items()})

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors by name; `EvictedMean(**state)` is an equal one."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def fork(self) -> EvictedMean:
        """An independent copy."""
        return EvictedMean(**{name: one.clone() for name, one in self.state().items()})

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return sum(one.untyped_storage().nbytes() for one in self.state().values())
