"""The highest sparsity that costs nothing, task by task: how much of dense attention's work a method may leave out
before its score is certainly lower (The Sparse Frontier, 2504.17768)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwise.bench.judging.intervals import Interval, of_strata
from headwise.errors import HeadwiseError

Scores = Mapping[str, Sequence[float]]  # by task, ask by ask


@dataclass(frozen=True)
class Trial:
    """A method at one sparsity: the share of dense attention's work that it leaves out, and what it scored.

    phase: "prefill" or "decode", whose work it is.
    """

    method: str
    phase: str
    sparsity: float
    scores: Scores


@dataclass(frozen=True)
class Highest:
    """The highest sparsity at which a method is not certainly below dense attention on a task, 0 where it is at all;
    gap: its score less dense attention's there, ask by ask."""

    task: str
    method: str
    phase: str
    sparsity: float
    gap: Interval


def highest_sparsities(dense: Scores, trials: Sequence[Trial], seed: int = 0) -> list[Highest]:
    """For every task and method, tasks in order; of a method's trials the sparsest whose paired interval reaches 0.

    A sparser trial counts even where a denser one fails: what is reported is a setting that can be used.
    """
    found = []
    methods = dict.fromkeys((trial.method, trial.phase) for trial in trials)
    for task, plain in dense.items():
        for method, phase in methods:
            best = Highest(task, method, phase, 0.0, of_strata([[0.0] * len(plain)], seed))
            for trial in trials:
                if (trial.method, trial.phase) == (method, phase) and task in trial.scores:
                    gap = _gap(trial.scores[task], plain, task, seed)
                    if gap.high >= 0 and trial.sparsity > best.sparsity:
                        best = Highest(task, method, phase, trial.sparsity, gap)
            found.append(best)
    return found


def _gap(scores: Sequence[float], dense: Sequence[float], task: str, seed: int) -> Interval:
    if len(scores) != len(dense):
        raise HeadwiseError(
            f"task '{task}' has {len(scores)} scores of a method and {len(dense)} of dense attention; ask both the same"
        )
    return of_strata([[one - other for one, other in zip(scores, dense, strict=True)]], seed)


def trials_of(rows: Sequence[dict[str, Any]]) -> tuple[Scores, list[Trial]]:
    """Dense attention's scores and the trials among a comparison's rows: its methods, by the bytes that they spare.

    Rows that spare none, such as those of selections, are left out, as their bytes do not tell what they read.
    """
    dense = next(row for row in rows if row["role"] == "dense")
    trials = [
        Trial(row["recipe"], "decode", 1 - row["of_dense"], _scores(row))
        for row in rows
        if row["role"] == "plan" and "overall" in row and row["of_dense"] < 1
    ]
    return _scores(dense), trials


def _scores(row: dict[str, Any]) -> Scores:
    return {
        name: [one["score"] for one in sorted(task["samples"], key=lambda one: (one["item"], one["ask"]))]
        for name, task in row["tasks"].items()
    }


def best_by_task(found: Sequence[Highest]) -> dict[str, list[Highest]]:
    """By task, the methods that reach the highest sparsity there."""
    best: dict[str, list[Highest]] = {}
    for one in found:
        top = best.setdefault(one.task, [one])
        if one is not top[0] and one.sparsity > top[0].sparsity:
            best[one.task] = [one]
        elif one is not top[0] and one.sparsity == top[0].sparsity:
            top.append(one)
    return best


def frontier(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By task of a comparison, as plain data: the highest sparsity that is not certainly below dense attention, and the
    recipes that reach it."""
    best = best_by_task(highest_sparsities(*trials_of(rows)))
    return {
        task: {"sparsity": round(own[0].sparsity, 6), "recipes": [one.method for one in own]}
        for task, own in best.items()
    }
