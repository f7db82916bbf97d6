"""More tokens in the first layers, fewer in the last: attention narrows on its way up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.knobs import Factor
from headwise.methods.budget import Budget
from headwise.registry import Card, register


@register("budget", "pyramid")
@dataclass(frozen=True)
class Pyramid(Budget):
    """Counts fall linearly from the first to the last layer, with the same mean.

    steepness: the mean count over the last layer's count, 1 (flat) or more.
    """

    steepness: Factor = 20.0

    card = Card(
        title="PyramidKV",
        paper="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling, arXiv 2406.02069",
        frees_memory=True,
        forgets="more in the last layers, less in the first",
        deviations="the whole count follows the pyramid; the paper sets the observation window apart and adds it to "
        "every layer (here protected tokens are a lower bound on every count). Equal to NVIDIA's kvpress but where the "
        "last layer's count would be below its observation window: there kvpress gives every layer the same",
    )

    def layer_share(self, layer: int, layers: int, kept: float = 0.0) -> float:
        """Factor on the count of `layer`; flatter where the first layer could not hold its part of the tokens."""
        if layers == 1:
            return 1.0
        widest = 2 - 1 / self.steepness
        if widest * kept > 1:
            widest = 1 / kept
        return widest - 2 * (widest - 1) * layer / (layers - 1)

    def plain(self, scores: torch.Tensor, protect: torch.Tensor, count: int, layer: int, layers: int) -> torch.Tensor:
        """Counts [h] of `layer`, from the paper's largest and smallest layer budgets."""
        stored = scores.shape[1]
        smallest = count / self.steepness
        largest = 2 * count - smallest
        if largest > stored:
            largest, smallest = stored, 2 * count - stored
        step = (largest - smallest) / max(1, layers - 1)
        return torch.tensor([round(largest - layer * step) if layers > 1 else count for _ in scores])
