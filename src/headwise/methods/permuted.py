"""MMInference's permutation: tokens of equal place in their frame come to lie side by side, in blocks."""

from __future__ import annotations

import torch

from headwise.forms import Gathered, Window


def permuted(place: torch.Tensor, phase: torch.Tensor, t: int, size: int, near: Window) -> Gathered:
    """Blocks of `size` in the order of `place [h, n]`, a token's index modulo its head's stride, for the last t tokens
    as queries: each reads the blocks of its own places and those of the `phase [h, 1]`, but for what `near` shows."""
    first = place.shape[1] - t
    keys, queries = (x.argsort(dim=1, stable=True) for x in (place, place[:, first:]))
    columns = []
    for own, asked, stored, at in zip(place, queries, keys, phase, strict=True):
        (low, high), (start, end) = _ends(own[first:][asked], size), _ends(own[stored], size)
        shared = (low[:, None] <= end) & (start <= high[:, None])
        columns.append(Gathered.listed(shared | ((start <= at) & (at <= end))))
    return Gathered(queries, keys, Gathered.joined(columns).unflatten(0, (len(place), -1)), size, size, near)


def _ends(places: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last place of each block of ascending `places [n]`."""
    starts = torch.arange(0, len(places), size, device=places.device)
    return places[starts], places[(starts + size - 1).clamp(max=len(places) - 1)]
