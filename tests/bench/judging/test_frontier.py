"""The highest sparsity that costs nothing: found by paired intervals, task by task (row 240)."""

from __future__ import annotations

import pytest

from headwise.bench.judging.frontier import Trial, best_by_task, highest_sparsities, trials_of
from headwise.errors import HeadwiseError

DENSE = {"needle": [1.0] * 40, "count": [1.0, 0.0] * 20}


def trial(method: str, sparsity: float, needle: int, count: int, phase: str = "decode") -> Trial:
    """A trial that loses so many of dense attention's right answers."""
    lost = [0.0] * needle + [1.0] * (40 - needle)
    return Trial(method, phase, sparsity, {"needle": lost, "count": [0.0] * (2 * count) + [1.0, 0.0] * (20 - count)})


def test_it_is_the_sparsest_setting_that_is_not_certainly_worse() -> None:
    trials = [
        trial("one", 0.5, 0, 0), trial("one", 0.8, 0, 8), trial("one", 0.9, 20, 15),
        trial("other", 0.5, 10, 0), trial("other", 0.95, 10, 1), trial("lines", 0.3, 0, 0, "prefill"),
    ]  # fmt: skip
    found = {(one.task, one.method): one for one in highest_sparsities(DENSE, trials)}
    assert found["needle", "one"].sparsity == 0.8
    assert found["count", "one"].sparsity == 0.5
    assert found["needle", "other"].sparsity == 0, "no setting that is not certainly below dense"
    assert found["count", "other"].sparsity == 0.95 and found["count", "other"].gap.low < 0
    assert found["needle", "lines"].phase == "prefill"
    best = best_by_task(list(found.values()))
    assert [one.method for one in best["needle"]] == ["one"]
    assert [one.method for one in best["count"]] == ["other"]


def test_it_needs_the_same_asks() -> None:
    with pytest.raises(HeadwiseError, match="ask both the same"):
        highest_sparsities(DENSE, [Trial("one", "decode", 0.5, {"needle": [1.0] * 39})])


def test_rows_of_a_comparison_are_trials_by_the_bytes_they_spare() -> None:
    def row(role: str, of_dense: float, scores: list[float]) -> dict[str, object]:
        samples = [{"item": i, "ask": 0, "score": score} for i, score in reversed(list(enumerate(scores)))]
        tasks = {"needle 512": {"samples": samples}}
        return {"role": role, "recipe": role, "of_dense": of_dense, "overall": {}, "tasks": tasks}

    rows = [row("dense", 1.0, [1.0, 0.0]), row("plan", 0.25, [0.0, 1.0]), row("plan", 1.02, [1.0, 1.0])]
    dense, trials = trials_of([*rows, row("baseline", 0.25, [0.0, 0.0]), {"role": "plan", "recipe": "refused"}])
    assert dense == {"needle 512": [1.0, 0.0]}
    assert [(one.sparsity, one.scores) for one in trials] == [(0.75, {"needle 512": [0.0, 1.0]})]
