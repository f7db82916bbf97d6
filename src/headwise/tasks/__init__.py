"""What a model is asked to judge a method: tasks, found in this folder. To add one, add one file."""

from __future__ import annotations

import json
from math import sqrt

from headwise.assets import embedded_scores
from headwise.registry import with_settings
from headwise.sentence import read_call
from headwise.tasks.base import TASKS, Likelihood, Task

MARGIN = 0.2  # a score this far above chance leaves room for a method to lose
EXAMPLE = 'write it like "niah_multikey(keys=8)"'


def all_tasks() -> dict[str, type[Task]]:
    """Tasks whose answers are scored, by name."""
    return {name: cls for name, cls in TASKS.all().items() if issubclass(cls, Task)}


def all_likelihoods() -> dict[str, type[Likelihood]]:
    """Tasks judged by the likelihood of true text, by name."""
    return {name: cls for name, cls in TASKS.all().items() if issubclass(cls, Likelihood)}


def task(sentence: str) -> Task | Likelihood:
    """The task of a phrase such as `niah_multikey(keys=8)`. Raises RecipeError naming the word and the fix."""
    call = read_call(sentence, EXAMPLE)
    made = with_settings(TASKS.get(call.name), call)
    assert isinstance(made, Task | Likelihood)
    return made


def answerable() -> dict[str, bool]:
    """For every measured phrase, whether the embedded model with dense attention clears chance by MARGIN at all
    contexts measured: only such tasks can tell methods apart on it. The scores are those of `benchmarks/tasks.py`."""
    measured = json.loads(embedded_scores().read_text(encoding="utf-8"))
    return {
        phrase: all(surely(row["score"], row["asks"]) - row["chance"] >= MARGIN for row in rows.values())
        for phrase, rows in measured.items()
        if isinstance(task(phrase), Task)
    }


def surely(score: float, asks: int) -> float:
    """What a score over few answers stands for at the least: the mean with one right and one wrong answer added, less
    its standard error."""
    mean = (score * asks + 1) / (asks + 2)
    return mean - sqrt(mean * (1 - mean) / (asks + 2))
