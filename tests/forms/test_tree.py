"""The form of a tree of guesses, beside what its definition says node by node."""

from __future__ import annotations

import pytest
import torch

from headwise.errors import ShapeError
from headwise.forms import Causal, Tree, Window

PARENTS = (-1, 0, 1, 2, 0, 4, 3, 1, 6)


def by_definition(parents: tuple[int, ...], left: int | None, n: int) -> torch.Tensor:
    """[t, n]: from each node its way back to the first, then the keys before the tree, until `left` are passed."""
    t = len(parents)
    seen = torch.zeros(t, n, dtype=torch.bool)
    for node in range(t):
        way, one = [], node
        while one >= 0:
            way.append(n - t + one)
            one = parents[one]
        way += reversed(range(n - t))
        seen[node, way if left is None else way[: left + 1]] = True
    return seen


@pytest.mark.parametrize("left", [None, 0, 1, 2, 3, 5, 40])
@pytest.mark.parametrize("n", [9, 10, 17])
def test_each_node_sees_its_way_back(left: int | None, n: int) -> None:
    tree = Tree(PARENTS, left)
    assert torch.equal(tree.dense(9, n)[0], by_definition(PARENTS, left, n))
    assert torch.equal(tree.rows(2, 5, 9, n)[0], by_definition(PARENTS, left, n)[2:5])


def test_a_chain_is_causal() -> None:
    chain = tuple(range(-1, 5))
    assert torch.equal(Tree(chain).dense(6, 20), Causal().dense(6, 20)) and not Tree(chain).branches
    assert torch.equal(Tree(chain, 3).dense(6, 20), Window(3).dense(6, 20))
    assert Tree(PARENTS).branches and Tree(PARENTS).depths == (0, 1, 2, 3, 1, 2, 4, 2, 5)


def test_as_many_queries_as_nodes() -> None:
    with pytest.raises(ShapeError, match="Tree has 9 nodes, but there are 8 queries"):
        Tree(PARENTS).check(8, 20)
