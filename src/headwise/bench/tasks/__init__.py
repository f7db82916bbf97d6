"""What a model is asked to judge a method: tasks, found in this folder. To add one, add one file."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import cache
from math import sqrt

from headwise.assets import embedded_scores
from headwise.bench.tasks.base import Likelihood, Made, Task, registered
from headwise.errors import RecipeError, did_you_mean, shorten
from headwise.registry import with_settings
from headwise.sentence import read_call

MARGIN = 0.2  # a score this far above chance leaves room for a method to lose
EXAMPLE = 'write it like "niah_multikey(keys=8)"'


@cache
def everything() -> dict[str, type[Made]]:
    """Every registered task of either kind by name; imports the files of this folder on first use."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return registered()


def all_tasks() -> dict[str, type[Task]]:
    """Tasks whose answers are scored, by name."""
    return {name: cls for name, cls in everything().items() if issubclass(cls, Task)}


def all_likelihoods() -> dict[str, type[Likelihood]]:
    """Tasks judged by the likelihood of true text, by name."""
    return {name: cls for name, cls in everything().items() if issubclass(cls, Likelihood)}


def task(sentence: str) -> Task | Likelihood:
    """The task of a phrase such as `niah_multikey(keys=8)`. Raises RecipeError naming the word and the fix."""
    call = read_call(sentence, EXAMPLE)
    if call.name not in everything():
        raise RecipeError(f"no task is called '{shorten(call.name)}'; {did_you_mean(call.name, everything())}")
    made = with_settings(everything()[call.name], call)
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
