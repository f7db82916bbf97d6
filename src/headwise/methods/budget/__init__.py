"""Budget: how the tokens an eviction may keep are shared out over layers and over the heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.methods import Method


@dataclass(frozen=True)
class Budget(Method):
    """Base and default: every head of every layer keeps the same count."""

    def layer_share(self, layer: int, layers: int, kept: float = 0.0) -> float:
        """Factor on the count of `layer`; the mean over all layers is 1.

        kept: share of the tokens that is kept on average; no layer can keep more than all (factor * kept <= 1).
        """
        return 1.0

    def allot(self, scores: torch.Tensor, protect: torch.Tensor, count: int) -> torch.Tensor:
        """Counts [h] that sum to `h * count`, from scores [h, n] and protect [h, n] of one layer's heads.

        Entries that a head does not hold have score -inf and are not protected.
        """
        return torch.full((scores.shape[0],), count, dtype=torch.int64)
