"""Confidence intervals of scores: Wilson's for answers that are right or wrong, the bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # two-sided 95 % of a normal distribution
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval, of `count` samples; `kind` is how the ends were found."""

    mean: float
    low: float
    high: float
    count: int
    kind: str


def wilson(right: int, count: int) -> tuple[float, float]:
    """Ends of Wilson's score interval for `right` of `count` (E. B. Wilson, JASA 22, 1927); (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, weight = right / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return (0.0 if right == 0 else middle - reach), (1.0 if right == count else middle + reach)


def of_scores(scores: Sequence[float], seed: int = 0) -> Interval:
    """The mean of one task's scores: Wilson's interval where all are 0 or 1, else the bootstrap's."""
    if all(score in (0, 1) for score in scores):
        right = round(sum(scores))
        return Interval(right / max(1, len(scores)), *wilson(right, len(scores)), len(scores), "Wilson 95 %")
    return of_strata([scores], seed)


def of_tasks(tasks: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The mean of the tasks' means, each counting the same, with the tasks' own intervals joined: the distances from
    mean to end add as squares (MOVER; G. Zou and A. Donner, Statistics in Medicine 27, 2008, equation 4). Unlike a
    bootstrap it stays honest where every answer is right."""
    own = [of_scores(scores, seed) for scores in tasks]
    mean = sum(one.mean for one in own) / len(own)
    below = math.sqrt(sum((one.mean - one.low) ** 2 for one in own)) / len(own)
    above = math.sqrt(sum((one.high - one.mean) ** 2 for one in own)) / len(own)
    kind = own[0].kind if len(own) == 1 else "95 % joined from those of the tasks"
    return Interval(mean, mean - below, mean + above, sum(one.count for one in own), kind)


def of_strata(strata: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The mean of the strata's means, each stratum counting the same, and its percentile bootstrap interval.

    Samples are drawn again within their stratum, RESAMPLES times, by a generator of this seed (B. Efron and
    R. Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3).
    """
    filled = [np.asarray(scores, dtype=np.float64) for scores in strata if len(scores)]
    if not filled:
        return Interval(0.0, 0.0, 0.0, 0, "none")
    draw = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for scores in filled:
        means += scores[draw.integers(0, len(scores), (RESAMPLES, len(scores)))].mean(axis=1)
    low, high = np.percentile(means / len(filled), (2.5, 97.5))
    mean = float(np.mean([scores.mean() for scores in filled]))
    kind = "bootstrap 95 %" if len(filled) == 1 else "bootstrap 95 %, by task"
    return Interval(mean, float(low), float(high), sum(map(len, filled)), kind)
