"""Tokens of which several may come next: guesses in a tree, each of which sees only those that it follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.where import Where


@dataclass(frozen=True)
class Tree(Where):
    """The t queries are the nodes of a tree: each sees all keys that come before the tree, itself and the nodes on its
    way from the first (SpecInfer, arXiv 2305.09781, section 4.2: tree attention).

    parents: by node, the node that it follows, which comes before it; -1 for the first, which all others follow.
    left: a query sees so many keys before it, counted along its way; None for all of them.
    """

    parents: tuple[int, ...]
    left: int | None = None
    depths: tuple[int, ...] = field(init=False, repr=False, compare=False)  # by node, how many it follows

    def __init__(self, parents: Sequence[int], left: int | None = None) -> None:
        depths: list[int] = []
        for node, parent in enumerate(parents):
            if not (0 <= parent < node or node == 0 == parent + 1):
                raise HeadwiseError(
                    f"node {node} of a tree follows {parent}; it has to follow one before it, and the first one -1"
                )
            depths.append(0 if node == 0 else depths[parent] + 1)
        if not depths:
            raise HeadwiseError("a tree has at least one node, the token that is certain")
        object.__setattr__(self, "parents", tuple(parents))
        object.__setattr__(self, "left", left)
        object.__setattr__(self, "depths", tuple(depths))

    @property
    def branches(self) -> bool:
        """Whether any node is followed by more than one, or the nodes are no chain in their order."""
        return self.parents != (*range(-1, len(self.parents) - 1),)

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        if t != len(self.parents):
            raise ShapeError(f"Tree has {len(self.parents)} nodes, but there are {t} queries; give one for each")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        seen = torch.zeros(t, n, dtype=torch.bool)
        for node, (parent, depth) in enumerate(zip(self.parents, self.depths, strict=True)):
            seen[node] = seen[parent] if node else torch.arange(n) < n - t
            seen[node, n - t + node] = True
            if self.left is not None:
                seen[node, : max(0, n - t + depth - self.left)] = False
        if self.left is not None:  # a node is as far as it is deep, not as its place says
            depths = torch.tensor(self.depths)
            seen[:, n - t :] &= depths[:, None] - depths <= self.left
        return seen[None, start:stop].to(device)
