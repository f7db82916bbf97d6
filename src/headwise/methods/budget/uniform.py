"""Every head of every layer keeps the same count."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.methods.budget import Budget
from headwise.registry import Card, register


@register("budget", "uniform")
@dataclass(frozen=True)
class Uniform(Budget):
    """What a recipe without a budget part does, by name."""

    card = Card(
        title="Uniform budget",
        paper="none: the usual default",
        frees_memory=True,
        forgets="nothing by itself: the eviction method decides",
    )

    def plain(self, scores: torch.Tensor, protect: torch.Tensor, count: int, layer: int, layers: int) -> torch.Tensor:
        """Counts [h] of `layer`: `count` for each head."""
        return torch.tensor([count for _ in scores])
