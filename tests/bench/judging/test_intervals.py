"""Intervals against values worked out elsewhere, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from headwise.bench.judging.intervals import of_scores, of_strata, of_tasks, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (15, 20, 0.5313, 0.8881), (0, 0, 0, 1)],
)
def test_wilson(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = [of_scores(list(draw.beta(2, 3, 40)), seed) for seed in range(300)]
    assert all(one.kind == "bootstrap 95 %" for one in held)
    assert 0.89 < np.mean([one.low <= 0.4 <= one.high for one in held]) < 0.99
    right = [of_scores([float(x) for x in draw.random(30) < 0.7], seed) for seed in range(300)]
    assert 0.9 < np.mean([one.low <= 0.7 <= one.high for one in right]) < 0.99


def test_each_task_counts_the_same() -> None:
    found = of_strata([[1.0] * 90, [0.0] * 10])
    assert (found.mean, found.low, found.high, found.count) == (0.5, 0.5, 0.5, 100)
    assert of_strata([[0.2, 0.4, 0.9]], 1) == of_strata([[0.2, 0.4, 0.9]], 1)
    assert of_strata([]).count == 0


def test_joined_intervals_hold_the_truth_and_know_doubt() -> None:
    draw = np.random.default_rng(1)
    found = [of_tasks([[float(x) for x in draw.random(12) < share] for share in (0.9, 0.5, 0.2)]) for _ in range(400)]
    assert 0.92 < np.mean([one.low <= 1.6 / 3 <= one.high for one in found]) < 0.995
    sure = of_tasks([[1.0] * 6, [1.0] * 6])
    assert sure.mean == sure.high == 1 and 0.6 < sure.low < 0.85
    assert of_tasks([[1.0, 0.0]]) == of_scores([1.0, 0.0])
