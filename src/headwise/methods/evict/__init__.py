"""Evict: which tokens each KV head keeps, for good. The verb is `score`; the engine chooses and frees the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.methods import Budgeted


@dataclass(frozen=True)
class Evict(Budgeted):
    """Base of the eviction methods."""

    @property
    def remembers(self) -> int:
        """How many of the last queries the engine keeps for `view.queries` across steps (0: this step's are enough)."""
        return 0

    def governs(self, layer: int) -> bool:
        """Whether this method evicts in `layer` at all."""
        return True

    def score(self, view: View) -> torch.Tensor:
        """Importance [h, n] of each stored token, higher stays; NaN is refused, ±inf is fine."""
        raise NotImplementedError
