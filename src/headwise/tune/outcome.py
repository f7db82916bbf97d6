"""What tuning came to: the trials, the one that was taken, and the plan file's account of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from headwise.errors import PlanError
from headwise.plan import Plan
from headwise.shapes import format_bytes
from headwise.tune.tuner import Trial, Tuner, front

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """trials: everything tried, dense first. chosen: the one taken. budget: bytes that were allowed."""

    tuner: Tuner
    budget: int
    trials: tuple[Trial, ...]
    chosen: Trial

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
            "tokens": self.tuner.tokens,
            "documents": len(self.tuner.answers),
            "answers": sum(len(one.recall.asked) for one in self.tuner.answers),
            "seed": self.tuner.seed,
            "chosen": told[id(self.chosen)],
            "front": [told[id(trial)] for trial in front(self.trials)],
            "trials": list(told.values()),
        }

    def as_json(self) -> dict[str, Any]:
        """What a page is drawn of: the account, and by head its recipe, bytes, and loss under the cheapest one."""
        held = {recipe: row for recipe, row in zip(self.tuner.table.menu, self.tuner.costs().tolist(), strict=True)}
        rows = self.chosen.plan.recipes
        known = self.chosen.predicted is not None
        return {
            "kind": "tune",
            **self.quality,
            "recipes": [[str(recipe) for recipe in row] for row in rows],
            "head_bytes": [[held[r][layer] for r in row] for layer, row in enumerate(rows)] if known else None,
            "head_losses": [[round(x, 6) for x in row] for row in self._cheapest().tolist()],
        }

    def _cheapest(self) -> torch.Tensor:
        """Estimated loss of every head under the candidate of fewest bytes, float32 [layers, kv_heads]."""
        return self.tuner.table.losses[int(self.tuner.costs().sum(1).argmin())]


def find(tuner: Tuner, budget: int, quality: float | None, watch: Watch) -> Outcome:
    """Try every contender and take the one that loses least within `budget` bytes.

    With a `quality`, 0 to 1, the one of fewest bytes that answers this share of what dense attention answers; PlanError
    where none that was tried does.
    """
    listed = tuner.contenders(budget)
    trials = []
    for place, (role, name, plan) in enumerate(listed):
        watch(f"trying {name}", place, len(listed))
        trials.append(tuner.trial(role, name, plan))
    within = [one for one in trials if one.held <= budget]
    if quality is not None:
        dense = trials[0]
        within = [one for one in trials if one.role != "dense" and one.right >= quality * dense.right]
        if not within:
            best = max(trials[1:], key=lambda one: one.right)
            raise PlanError(
                f"nothing up to {format_bytes(max(one.held for one in trials[1:]))} answers {quality:.0%} of what "
                f"dense attention does ({dense.right:.1%}); the best, '{best.name}', answers {best.right:.1%}; give a "
                "larger --memory or --share to look around, or a lower --quality"
            )
        return Outcome(tuner, budget, tuple(trials), min(within, key=lambda one: (one.held, one.loss)))
    return Outcome(tuner, budget, tuple(trials), min(within, key=lambda one: (one.loss, one.held)))


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
    }
