"""What tuning came to: the trials, the one that was taken, and the plan file's account of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headwise.errors import PlanError
from headwise.plan import Plan
from headwise.shapes import format_bytes
from headwise.tune.prices import refined
from headwise.tune.tuner import POWERS, ROOM, Trial, Tuner, front
from headwise.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """trials: everything tried, dense first. chosen: the one taken. budget: bytes that were allowed. seconds: that a
    token was allowed, and that it took under the plan, where any were given."""

    tuner: Tuner
    budget: int
    trials: tuple[Trial, ...]
    chosen: Trial
    seconds: tuple[float, float] | None = None

    @property
    def plan(self) -> Plan:
        """The chosen plan with the losses it was chosen by (`head_losses` of the cheapest candidate, nats)."""
        shown = {**self.chosen.plan.calibration, "head_losses": self._cheapest()}
        return replace(self.chosen.plan, calibration=shown, quality={"tune": self.quality})

    @property
    def quality(self) -> dict[str, Any]:
        """The whole front and every trial, as plain JSON data."""
        dense = self.tuner.dense_bytes
        told = {id(trial): _facts(trial, dense) for trial in self.trials}
        return {
            "budget": self.budget,
            "dense_bytes": dense,
            "sliding": round(self.tuner.sliding_bytes / dense, 6),
            "tokens": self.tuner.tokens,
            "documents": len(self.tuner.answers),
            "answers": sum(len(one.recall.asked) for one in self.tuner.answers),
            "seed": self.tuner.seed,
            "chosen": told[id(self.chosen)],
            "seconds": None if self.seconds is None else dict(zip(("allowed", "taken"), self.seconds, strict=True)),
            "front": [told[id(trial)] for trial in front(self.trials)],
            "trials": list(told.values()),
        }

    def as_json(self) -> dict[str, Any]:
        """What a page is drawn of: the account, and by head its recipe, bytes, and loss under the cheapest one."""
        plan, rows = self.chosen.plan, self.chosen.plan.recipes
        known = self.chosen.predicted is not None
        return {
            "kind": "tune",
            **self.quality,
            "recipes": [[str(recipe) for recipe in row] for row in rows],
            "head_bytes": [
                [int(self.tuner.costs()[self.tuner.place(plan, layer, head), layer]) for head in range(len(row))]
                for layer, row in enumerate(rows)
            ]
            if known
            else None,
            "head_losses": [
                [round(x, 6) for x in losses[: len(row)]]
                for row, losses in zip(rows, self._cheapest().tolist(), strict=True)
            ],
        }

    def _cheapest(self) -> torch.Tensor:
        """Estimated loss of every head under the candidate of fewest bytes, float32 [layers, kv_heads]."""
        return self.tuner.table.losses[int(self.tuner.costs().sum(1).argmin())]


def find(
    tuner: Tuner,
    budget: int,
    quality: float | None,
    watch: Watch,
    seconds: float | None = None,
    *,
    each: Callable[[Trial], None] = lambda trial: None,
    prices: Path | None = None,
) -> Outcome:
    """Try every contender and take the one that loses least within `budget` bytes.

    With a `quality`, 0 to 1, the one of fewest bytes that answers this share of what dense attention answers; PlanError
    where none that was tried does. With `seconds`, only plans that decode a token within them on this machine. each:
    shown every trial as it is done. prices: where prices of heads alone are kept.
    """
    if seconds is not None:
        watch("timing a token", 0, 0)
        budget = tuner.affordable(budget, seconds)
    first = [tuner.chosen(budget, power) for power in POWERS]
    tuner, plans = refined(tuner, budget, watch, prices)
    listed = tuner.contenders(budget, [*first, *plans])
    trials: list[Trial] = []
    for place, (role, name, plan) in enumerate(listed):
        watch(f"trying {name}", place, len(listed))
        trials.append(tuner.trial(role, name, plan))
        each(trials[-1])
    ranked = _by_loss(trials, budget) if quality is None else _by_bytes(trials, quality)
    if seconds is None:
        return Outcome(tuner, budget, tuple(trials), ranked[0])
    for one in ranked:
        if (taken := tuner.token_seconds(one.plan)) <= seconds:
            return Outcome(tuner, budget, tuple(trials), one, (seconds, taken))
    least = min(tuner.token_seconds(one.plan) for one in ranked)
    raise PlanError(
        f"no plan that would do decodes a token within --time {1e3 * seconds:g}ms after {tuner.tokens} tokens, the "
        f"fastest takes {1e3 * least:.1f} ms; give {1e3 * least * ROOM:.1f}ms or more, or a lower --quality"
    )


def _by_loss(trials: Sequence[Trial], budget: int) -> list[Trial]:
    """Those within `budget` bytes, the one that loses least first."""
    return sorted((one for one in trials if one.held <= budget), key=lambda one: (one.loss, one.held))


def _by_bytes(trials: Sequence[Trial], quality: float) -> list[Trial]:
    """Those that answer a share of what the first, dense attention, answers; the one of fewest bytes first."""
    dense, *others = trials
    within = [one for one in others if one.right >= quality * dense.right]
    if not within:
        best = max(others, key=lambda one: one.right)
        raise PlanError(
            f"nothing up to {format_bytes(max(one.held for one in others))} answers {quality:.0%} of what "
            f"dense attention does ({dense.right:.1%}); the best, '{best.name}', answers {best.right:.1%}; give a "
            "larger --memory or --share to look around, or a lower --quality"
        )
    return sorted(within, key=lambda one: (one.held, one.loss))


def _facts(trial: Trial, dense: int) -> dict[str, Any]:
    return {
        "role": trial.role,
        "name": trial.name,
        "plan": trial.plan.digest,
        "held": trial.held,
        "of_dense": round(trial.held / dense, 6),
        "predicted": None if trial.predicted is None else round(trial.predicted, 6),
        "loss": round(trial.loss, 6),
        "right": round(trial.right, 6),
        "kept": round(trial.kept, 6),
    }
