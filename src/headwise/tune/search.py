"""From documents with questions to the plan that loses least: heads are measured, plans are made of that, and tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwise.calibrate.answers import dense_answers
from headwise.errors import HeadwiseError
from headwise.observe import Recall
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.tune.menu import default_menu
from headwise.tune.outcome import Outcome, find
from headwise.tune.table import measure, prices_file
from headwise.tune.tuner import Trial, Tuner
from headwise.watch import Watch


@dataclass(frozen=True)
class Wanted:
    """What a plan is to be.

    budget: bytes it may hold after a prompt of `tokens`. menu: what heads may be given, nothing for the built-in
    candidates. quality: the share of dense attention's answers that is enough, None for the least loss. seconds: what
    decoding a token may take on this machine, or None.
    """

    budget: int
    tokens: int
    menu: tuple[Recipe, ...] = ()
    quality: float | None = None
    seconds: float | None = None
    seed: int = 0


def tuned(
    model: PreTrainedModel,
    recalls: Sequence[Recall],
    wanted: Wanted,
    tables: Path,
    trials: Path | None,
    watch: Watch,
    each: Callable[[str], None],
) -> Outcome:
    """Measure, choose and try. tables: where measurements of heads are kept, for other budgets as well; trials: where
    what whole plans lose is. watch: told what is being done; each: told every finished trial."""
    answers = []
    for place, recall in enumerate(recalls):
        watch("reading the documents densely", place, len(recalls))
        told = dense_answers(model, recall, wanted.seed)
        if told.tells:
            answers.append(told)
    if not answers:
        raise HeadwiseError(
            f"dense attention knows too few answers about any of the {len(recalls)} documents to tune on; give --docs "
            "of your own, a shorter --train-context, or another model"
        )
    menu = wanted.menu or default_menu()
    table = measure(model, [one.recall for one in answers], menu, tables, watch, wanted.seed)
    tuner = Tuner(model, answers, table, wanted.tokens, wanted.seed, folder=trials)
    return find(
        tuner, wanted.budget, wanted.quality, watch, wanted.seconds,
        each=lambda trial: each(_trial_line(trial, tuner.dense_bytes)),
        prices=prices_file(model, recalls, menu, tables, wanted.seed),
    )  # fmt: skip


def _trial_line(trial: Trial, dense: int) -> str:
    told = f"loss {trial.loss:.4f} nats, {trial.kept:.1%} of dense's answers"
    return f"{trial.name}: {trial.held / dense:.1%} of dense bytes, {told}"
