"""Hand-made cases of the budgets."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from headwise.errors import HeadwiseError
from headwise.methods.budget.ada import Ada
from headwise.methods.budget.pyramid import Pyramid


@pytest.mark.parametrize("layers", [1, 2, 7, 32])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.6, 1.0])
def test_pyramid_falls_linearly_with_mean_one_and_never_asks_for_more_than_there_is(layers: int, kept: float) -> None:
    shares = [Pyramid().layer_share(layer, layers, kept) for layer in range(layers)]
    assert abs(sum(shares) / layers - 1) < 1e-9
    assert all(share * kept <= 1 + 1e-9 for share in shares)
    steps = [a - b for a, b in pairwise(shares)]
    assert all(abs(step - steps[0]) < 1e-9 and step >= -1e-9 for step in steps)
    if kept == 0.0 and layers > 1:
        assert shares[-1] == pytest.approx(1 / 20)
    if kept == 1.0:
        assert shares == [1.0] * layers


def test_ada_gives_to_heads_whose_scores_are_worth_more() -> None:
    scores = torch.rand(4, 100) * torch.tensor([[1.0], [1.0], [1.0], [50.0]])
    counts = Ada().allot(scores, torch.zeros(4, 100, dtype=torch.bool), 20)
    assert int(counts.sum()) == 80
    assert counts[3] > 60
    assert (counts >= 4).all()


@pytest.mark.parametrize("count", [1, 7, 50, 100])
def test_ada_sums_exactly_honours_protection_and_breaks_ties_evenly(count: int) -> None:
    protect = torch.zeros(4, 100, dtype=torch.bool)
    protect[2, :30] = True
    counts = Ada().allot(torch.zeros(4, 100), protect, count)
    assert int(counts.sum()) == max(4 * count, 30)
    assert counts[2] >= 30
    others = counts[[0, 1, 3]]
    assert others.max() - others.min() <= 1
    assert torch.equal(counts, Ada().allot(torch.zeros(4, 100), protect, count))


def test_ada_never_counts_entries_that_a_head_does_not_hold() -> None:
    scores = torch.full((2, 50), -torch.inf)
    scores[0, :5], scores[1, :] = 1.0, 0.0
    counts = Ada().allot(scores, torch.zeros(2, 50, dtype=torch.bool), 25)
    assert counts.tolist() == [5, 45]
    assert Ada().allot(scores, torch.zeros(2, 50, dtype=torch.bool), 50).tolist() == [5, 50]


def test_knobs_out_of_range_are_refused() -> None:
    for wrong in (lambda: Ada(-0.1), lambda: Ada(1.1), lambda: Pyramid(0.5)):
        with pytest.raises(HeadwiseError):
            wrong()
