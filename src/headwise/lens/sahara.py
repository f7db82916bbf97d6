"""Sahara: heads that together turn what a set of prompts leaves in a model (arXiv 2410.13708, section 4).

Of the last tokens' states of all prompts, as columns, the left singular vectors of the highest values are what the
prompts have in common; the angles between these with and without heads tell how far the heads turn it. The authors'
code has prompts as rows, so that the left vectors say how prompts lie to one another, and compares the first alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from headwise.lens.ships import evenly, heads_of
from headwise.observe import Subject
from headwise.seams.transformers.beside import Head

RANK = 4  # singular vectors that are compared


@torch.no_grad()
def subspace(subject: Subject, prompts: Sequence[torch.Tensor], heads: Collection[Head] = ()) -> torch.Tensor:
    """An orthonormal basis [width, RANK] of what the last tokens' states of prompts, ids [1, n], have in common, where
    these heads look at all alike."""
    attention = evenly(heads)
    states = [subject.hidden(ids.to(subject.device), torch.tensor([ids.shape[1] - 1]), attention)[0] for ids in prompts]
    return torch.linalg.svd(torch.stack(states).float().T, full_matrices=False).U[:, :RANK]


def turned(one: torch.Tensor, other: torch.Tensor) -> float:
    """The sum of the principal angles between two subspaces, orthonormal bases [width, rank], in radians."""
    return float(torch.linalg.svdvals(one.T @ other).clamp(max=1.0).arccos().sum())


def grown(subject: Subject, prompts: Sequence[torch.Tensor], count: int) -> list[Head]:
    """So many heads, one added after the other: each time the one that turns the subspace most beside those that are
    there."""
    whole, group = subspace(subject, prompts), list[Head]()
    for _ in range(count):
        left = [head for head in heads_of(subject) if head not in group]
        group.append(max(left, key=lambda head: turned(whole, subspace(subject, prompts, [*group, head]))))
    return group
