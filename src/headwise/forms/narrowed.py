"""Another form, cut down to some of its queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import ShapeError
from headwise.forms.where import Where


@dataclass(frozen=True, eq=False)
class Narrowed(Where):
    """What `where` shows to its queries from the `first` on, of the keys in a mask `keys [h, n]` where there is one."""

    where: Where
    first: int = 0
    keys: Tensor | None = None

    @property
    def heads(self) -> int | None:
        return self.where.heads if self.keys is None else self.keys.shape[0]

    @property
    def causal(self) -> bool:
        return self.where.causal

    def check(self, t: int, n: int) -> None:
        self.where.check(self.first + t, n)
        if self.keys is not None and self.keys.shape[1] != n:
            raise ShapeError(f"Narrowed has a mask over {self.keys.shape[1]} keys, but there are {n}")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        drawn = self.where.rows(self.first + start, self.first + stop, self.first + t, n, device)
        return drawn if self.keys is None else drawn & self.keys[:, None].to(drawn.device)
