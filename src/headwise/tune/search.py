"""From documents with questions to the plan that loses least: heads are measured, plans are made of that, and tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwise.calibrate.answers import dense_answers
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.tune.menu import default_menu
from headwise.tune.outcome import Outcome, find
from headwise.tune.table import measure
from headwise.tune.tuner import Trial, Tuner
from headwise.watch import Watch


def tuned(
    model: PreTrainedModel,
    recalls: list[Any],
    budget: int,
    tokens: int,
    *,
    menu: tuple[Recipe, ...],
    quality: float | None,
    tables: Path,
    trials: Path | None,
    seed: int,
    watch: Watch,
    each: Callable[[str], None] = lambda row: None,
    seconds: float | None = None,
) -> Outcome:
    """Measure, choose and try. tables: where measurements of heads are kept, for other budgets as well; trials: where
    what whole plans lose is. watch: told what is being done; each: told every finished trial."""
    table = measure(model, recalls, menu or default_menu(), tables, watch, seed)
    answers = []
    for place, recall in enumerate(recalls):
        watch("reading the documents densely", place, len(recalls))
        answers.append(dense_answers(model, recall))
    tuner = Tuner(model, answers, table, tokens, seed, folder=trials)
    return find(tuner, budget, quality, watch, seconds, each=lambda trial: each(_told(trial, tuner.dense_bytes)))


def _told(trial: Trial, dense: int) -> str:
    return f"{trial.name}: {trial.held / dense:.1%} of dense bytes, loss {trial.loss:.4f} nats, {trial.right:.1%} right"
