"""Ragged lists of indices, one per head: checks and drawings shared by the forms of `Where` that hold such lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError


def ascending(what: str, lists: Sequence[Tensor], fix: str) -> int:
    """Check ragged int64 lists: no negatives, strictly ascending. Returns the highest entry, -1 if all are empty."""
    for one in lists:
        if one.dim() != 1 or one.dtype != torch.int64:
            raise ShapeError(f"{what}: each list must be a 1-d int64 tensor, got {list(one.shape)} {one.dtype}")
    sizes = [one.shape[0] for one in lists]
    if not sum(sizes):
        return -1
    flat = torch.cat(tuple(lists))
    rising = flat[1:] > flat[:-1]
    edge = 0
    for size in sizes[:-1]:
        edge += size
        if 0 < edge < flat.shape[0]:
            rising[edge - 1] = True
    return bounds(what, flat, bool(rising.all()), fix)


def bounds(what: str, values: Tensor, rising: bool, fix: str) -> int:
    """Highest of `values`, which must not be negative nor fail the ascending test already made."""
    least, most = values.aminmax()
    lowest, highest = int(least), int(most)
    if lowest < 0:
        raise HeadwiseError(f"{what}: {lowest} is negative; storage indices count from 0 (add n to count from the end)")
    if not rising:
        raise HeadwiseError(f"{what}: entries must ascend without repeats; {fix}")
    return highest


def below(what: str, highest: int, limit: int, unit: str) -> None:
    """Raise unless the highest index of a list is under `limit`."""
    if highest >= limit:
        raise HeadwiseError(f"{what}: {highest} is out of range for {limit} {unit}; the highest is {limit - 1}")


def marks(lists: Sequence[Tensor], n: int, device: torch.device | str) -> Tensor:
    """Ragged lists drawn: bool `[h, n]`."""
    marks = torch.zeros(len(lists), n, dtype=torch.bool, device=device)
    for head, one in enumerate(lists):
        marks[head, one.to(device)] = True
    return marks


def seen_by(indices: Tensor, t: int, n: int) -> int:
    """Pairs of the last t queries with the keys at `indices`."""
    return int((n - indices.clamp(min=n - t)).sum())
