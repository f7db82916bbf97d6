"""From a table to plans, and from plans to what they really lose: the front of quality over bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from headwise.calibrate.answers import Answers, answer_score
from headwise.calibrate.sensitivity import additive
from headwise.cost.pace import token_seconds
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.engine.budget import group_bytes
from headwise.errors import PlanError, RecipeError
from headwise.kept import once
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel, Seam, as_plan, attach
from headwise.shapes import format_bytes
from headwise.tune.knapsack import Ints, least_budget, spend
from headwise.tune.menu import RIVAL_CODECS, rivals
from headwise.tune.table import Table

ContenderKind = Literal["dense", "tuned", "rival"]
STEPS = (0.5, 0.75, 1.5, 2.0)  # of the bytes asked for, where the front is looked at too
ROOM = 1.1  # over what a token took, so that the time named in an error will do
POWERS = (1.0, 0.5)  # of a head's estimated loss, by which plans are chosen: the measured one decides between them


@dataclass(frozen=True)
class Trial:
    """A plan that was tried. held: bytes after a prompt of the tuner's tokens. predicted: sum of its heads' estimated
    losses, None where a head follows no candidate. loss, right: means over the tuning documents, see `AnswerScore`."""

    role: ContenderKind
    name: str
    plan: Plan
    held: int
    predicted: float | None
    loss: float
    right: float


@dataclass(frozen=True)
class Tuner:
    """Chooses and tries plans for one model.

    tokens: prompt length that bytes are counted for. calibration: tensors by name that every plan is to hold. folder:
    where what a plan loses is kept under its digest; what is there is not measured again.
    """

    model: PreTrainedModel
    answers: Sequence[Answers]
    table: Table
    tokens: int
    seed: int = 0
    calibration: dict[str, torch.Tensor] = field(default_factory=dict)
    folder: Path | None = None

    _paces: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def seam(self) -> Seam:
        """What is known of the model's attention."""
        return attach(self.model)

    @property
    def dense_bytes(self) -> int:
        """Keys and values of the whole prompt."""
        return self.seam.geometry.dense_bytes(self.tokens, self.model.dtype)

    def chosen(self, budget: int, power: float = 1.0) -> Plan:
        """The plan of least summed loss, each to the `power`, within `budget` bytes; PlanError where none fits."""
        full, costs, fixed = self._spendable()
        losses, heads = self.table.losses[:, full].double().numpy() ** power, [self._heads[layer] for layer in full]
        picked = dict(zip(full, spend(losses, costs, heads, budget - fixed), strict=True))
        rows = tuple(
            tuple(self.table.menu[place] for place in picked[layer]) if layer in picked else (Recipe(),) * count
            for layer, count in enumerate(self._heads)
        )
        return Plan(self.seam.geometry, rows, self.seam.fingerprint)

    @property
    def _heads(self) -> tuple[int, ...]:
        """KV heads by layer."""
        return self.seam.geometry.kv_heads

    def _spendable(self) -> tuple[list[int], Ints, int]:
        """The layers without a window, bytes of one of their heads [recipes, layers], and bytes of the other layers."""
        windows, costs = self.seam.geometry.windows, self.costs()
        full = [layer for layer, window in enumerate(windows) if window is None]
        fixed = sum(int(costs[0, layer]) * count for layer, count in enumerate(self._heads) if layer not in full)
        return full, costs[:, full], fixed

    def affordable(self, budget: int, seconds: float) -> int:
        """The most bytes up to `budget`, to a 32nd of it, whose chosen plan decodes a token in `seconds`.

        PlanError, with what was measured, where the plan of fewest bytes takes longer.
        """
        if self.token_seconds(self.chosen(budget)) <= seconds:
            return budget
        full, costs, fixed = self._spendable()
        low, high = fixed + least_budget(costs, [self._heads[layer] for layer in full]), budget
        if (taken := self.token_seconds(self.chosen(low))) > seconds:
            raise PlanError(
                f"with the fewest bytes of any plan, {format_bytes(low)}, a token takes {1e3 * taken:.1f} ms after "
                f"{self.tokens} tokens, more than --time {1e3 * seconds:g}ms; give {1e3 * taken * ROOM:.1f}ms or more, "
                "or a smaller model"
            )
        while high - low > budget // 32:
            middle = (low + high) // 2
            within = self.token_seconds(self.chosen(middle)) <= seconds
            low, high = (middle, high) if within else (low, middle)
        return low

    def token_seconds(self, plan: Plan) -> float:
        """Seconds of a token after the tuner's tokens, of each plan measured once."""
        plan = self._whole(plan)
        if plan.digest not in self._paces:
            self._paces[plan.digest] = token_seconds(self.model, plan, self.tokens)
        return self._paces[plan.digest]

    def _whole(self, plan: Plan) -> Plan:
        return replace(as_plan(self.seam, plan), calibration=self.calibration)

    def costs(self) -> Ints:
        """Bytes of one head, [recipes, layers]: whole pages, so heads add up to the plan."""
        geometry, rows = self.seam.geometry, []
        for recipe in self.table.menu:
            groups = group_bytes(Plan.uniform(geometry, recipe), self.tokens, self.model.dtype)
            rows.append([-(-held // len(group.heads)) for group, held in groups])
        return np.array(rows, dtype=np.int64)

    def trial(self, role: ContenderKind, name: str, plan: Plan) -> Trial:
        """Answer the tuning questions under `plan`."""
        plan = self._whole(plan)
        found = once(self.folder, plan.digest, lambda: self._lost(plan))
        losses = self.table.by_recipe()
        known = all(recipe in losses for row in plan.recipes for recipe in row)
        return Trial(
            role, name, plan,
            held=predicted_bytes(plan, self.tokens, self.model.dtype),
            predicted=additive(plan, losses) if known else None,
            loss=found["loss"],
            right=found["right"],
        )  # fmt: skip

    def _lost(self, plan: Plan) -> dict[str, float]:
        """What the tuning documents' answers lose under `plan`, as JSON data."""
        found = [answer_score(self.model, plan, answers, self.seed) for answers in self.answers]
        return {
            "loss": float(torch.tensor([one.loss for one in found]).mean()),
            "right": float(torch.tensor([one.right for one in found]).mean()),
        }

    def contenders(self, budget: int) -> list[tuple[ContenderKind, str, Plan]]:
        """What is tried for a budget: chosen plans along the front, and single methods at exactly its bytes."""
        listed: list[tuple[ContenderKind, str, Plan]] = [("dense", "dense", Plan.uniform(self.seam.geometry, ""))]
        sizes = [(1.0, power) for power in POWERS] + [(step, POWERS[0]) for step in STEPS]
        for step, power in sizes:
            try:
                plan = self.chosen(int(step * budget), power)
            except PlanError:
                if step < 1:  # a smaller plan than was asked for may well be impossible
                    continue
                raise
            if plan.digest not in {one.digest for _, _, one in listed}:
                listed.append(("tuned", f"tuned at {step * budget / self.dense_bytes:.1%}", plan))
        for codec in RIVAL_CODECS:
            plan = Plan.uniform(self.seam.geometry, codec)
            if predicted_bytes(plan, self.tokens, self.model.dtype) <= budget:
                listed.append(("rival", codec, plan))
        for sentence in rivals():
            try:
                recipe = self._fitted(sentence, budget)
            except RecipeError:
                continue  # its least is above the budget
            listed.append(("rival", str(recipe), Plan.uniform(self.seam.geometry, recipe)))
        return listed

    def _fitted(self, sentence: str, budget: int) -> Recipe:
        """The recipe with the largest share of tokens that fits: a share, as documents are of other lengths."""
        recipe = fitted(Plan.uniform(self.seam.geometry, sentence), budget, self.tokens, self.model.dtype)
        share = max(math.floor(1e4 * recipe.evict.amount.tokens / self.tokens), 1) / 1e4
        return replace(recipe, evict=replace(recipe.evict, budget=share))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats: none holds as little and loses less; by bytes."""
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (one.held, one.loss)):
        if not best or trial.loss < best[-1].loss:
            best.append(trial)
    return best
