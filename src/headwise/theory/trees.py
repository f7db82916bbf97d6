"""Trees of drafted tokens after a text, as a model reads them in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Tree:
    """The text and the drafts after it as nodes, each after its parent. parents: of each node, -1 of the first.

    written: whether a node's neighbours are those before it in the order of writing, and not on its path: wrong, for
    controls. before [nodes, nodes]: whether a node is another or comes before it on its path. depth [nodes]: how many
    come before it.
    """

    def __init__(self, parents: Sequence[int], written: bool = False) -> None:
        self.parents, self.written = torch.tensor(parents), written
        self.before = torch.eye(len(parents), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                self.before[node] |= self.before[parent]
        self.depth = self.before.sum(1) - 1

    def path(self, node: int) -> list[int]:
        """The nodes that lead to one, itself included."""
        return [int(one) for one in self.before[node].nonzero()[:, 0]]

    def groups(self, size: int) -> Tensor:
        """The group of each node, of `size` tokens of its path, [nodes]."""
        return self.depth // size

    def above(self, back: int) -> Tensor:
        """The node `back` steps before each on its path, -1 where there is none, [nodes]."""
        found = torch.arange(len(self.parents))
        if self.written:
            return (found - back).clamp_min(-1)
        for _ in range(back):
            found = torch.where(found >= 0, self.parents[found.clamp_min(0)], found)
        return found


def drafted(ids: list[int], follows: Tensor, deep: int, wide: int = 2) -> tuple[list[int], Tree]:
    """A text with a tree after it: of each node the `wide` tokens that mostly follow it, `deep` times over.

    follows [symbols, symbols]: how often one symbol comes after another.
    """
    ids, parents = list(ids), list(range(-1, len(ids) - 1))
    last = [len(ids) - 1]
    for _ in range(deep):
        grown = []
        for node in last:
            for one in follows[ids[node]].topk(wide).indices.tolist():
                grown.append(len(ids))
                ids.append(one)
                parents.append(node)
        last = grown
    return ids, Tree(parents)


def accepted(said: list[int], ids: list[int], tree: Tree, tokens: int) -> list[int]:
    """What follows the text of so many tokens: the drafts on the path that the model says itself, and what it says
    after them. said: the token that it says after each node."""
    node, found = tokens - 1, []
    while True:
        found.append(said[node])
        children = [one for one in range(tokens, len(ids)) if int(tree.parents[one]) == node]
        node = next((one for one in children if ids[one] == said[node]), -1)
        if node < 0:
            return found
