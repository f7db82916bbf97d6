"""One budget shared out to layers by how much each has to read: the density that a method noted of every head."""

from __future__ import annotations

import math

import torch

from headwise.attention.view import View


def share(view: View, floor: float) -> torch.Tensor:
    """What the heads of the view's layer take of their budget, []: at most 1 on average over the layers.

    By the notes `density` of all heads, [3]: tokens seen, the density then, and at the step before, by which all layers
    of a step go. A layer's density is the mean over its heads, however many it has. 1 in a first step.
    """
    places = sorted(place for place in view.memory.notes if place[2] == "density")
    if not places:
        return torch.ones((), device=view.positions.device)
    told = torch.stack([view.memory.notes[place] for place in places])
    before = torch.where(told[:, 0] == view.seen, told[:, 2], told[:, 1])
    layer = torch.tensor([place[0] for place in places], device=told.device)
    counts = layer.bincount()
    by_layer = told.new_zeros(len(counts)).index_add_(0, layer, before) / counts.clamp(min=1)
    if bool(by_layer.isnan().any()):
        return by_layer.new_ones(())
    relative = by_layer[view.layer] * (counts > 0).sum() / by_layer.sum().clamp(min=1e-9)
    return floor + (1 - floor) * relative


def plain_share(view: View, floor: float) -> float:
    """The same, one noted density at a time."""
    by_layer: dict[int, list[float]] = {}
    for (layer, _, name), note in view.memory.notes.items():
        if name == "density":
            seen, now, before = note.tolist()
            by_layer.setdefault(layer, []).append(before if seen == view.seen else now)
    means = {layer: sum(densities) / len(densities) for layer, densities in by_layer.items()}
    if not means or any(math.isnan(mean) for mean in means.values()):
        return 1.0
    return floor + (1 - floor) * means[view.layer] / max(1e-9, sum(means.values()) / len(means))
