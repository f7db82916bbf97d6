"""From a table to plans, and from plans to what they really lose: the front of quality over bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from headwise.calibrate.answers import Answers, answer_score, mixture_score
from headwise.calibrate.shelf import shelved
from headwise.cost.pace import token_seconds
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.engine.budget import group_bytes
from headwise.errors import PlanError, RecipeError
from headwise.kept import once
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel, Seam, as_plan, attach
from headwise.shapes import format_bytes
from headwise.tune.knapsack import Floats, Ints, least_budget, spend
from headwise.tune.menu import RIVAL_CODECS, rivals
from headwise.tune.table import Table

ContenderKind = Literal["dense", "tuned", "rival"]
STEPS = (0.5, 0.75, 1.5, 2.0)  # of the bytes asked for, where the front is looked at too
ROOM = 1.1  # over what a token took, so that the time named in an error will do
PROBES = 3  # documents on which single heads are measured
POWERS = (1.0, 0.5)  # of a head's estimated loss, by which plans are chosen: the measured one decides between them


@dataclass(frozen=True)
class Trial:
    """A plan that was tried. held: bytes after a prompt of the tuner's tokens. predicted: sum of its heads' losses by
    the table, None where a head follows no candidate. loss, right: means over the tuning documents, see `AnswerScore`.
    kept: share of the answers that dense attention has right which are right under the plan."""

    role: ContenderKind
    name: str
    plan: Plan
    held: int
    predicted: float | None
    loss: float
    right: float
    kept: float


@dataclass(frozen=True)
class Tuner:
    """Chooses and tries plans for one model.

    tokens: prompt length that bytes are counted for. calibration: tensors by name that every plan is to hold. folder:
    where what a plan loses is kept, under `measured` and its digest; what is there is not measured again.
    """

    model: PreTrainedModel
    answers: Sequence[Answers]
    table: Table
    tokens: int
    seed: int = 0
    calibration: dict[str, torch.Tensor] = field(default_factory=dict)
    folder: Path | None = None
    measured: str = ""

    _paces: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _losses: dict[str, dict[str, float]] = field(default_factory=dict, init=False, repr=False)

    @property
    def seam(self) -> Seam:
        """What is known of the model's attention."""
        return attach(self.model)

    @property
    def dense_bytes(self) -> int:
        """Keys and values of the whole prompt, and states."""
        return self.seam.geometry.dense_bytes(self.tokens, self.model.dtype)

    @property
    def sliding_bytes(self) -> int:
        """Of these, what sliding layers hold, where a plan chooses the codec and nothing else."""
        layers = tuple(layer for layer in self.seam.geometry.layers if layer.window is not None)
        sliding, dtype = replace(self.seam.geometry, layers=layers), self.model.dtype
        return sliding.dense_bytes(self.tokens, dtype) - sliding.state_bytes(dtype)

    @property
    def quick(self) -> Tuner:
        """A tuner that knows the `PROBES` documents alone of which dense attention answers most: one for every head,
        since a head takes its own measurement."""
        telling = sorted(self.answers, key=lambda one: -sum(one.known))[:PROBES]
        return replace(self, answers=telling, measured="heads-")

    def chosen(self, budget: int, power: float = 1.0) -> Plan:
        """The plan of least summed loss, each to the `power`, within `budget` bytes; PlanError where none fits."""
        losses, heads = self.table.losses.double().numpy() ** power, self.seam.geometry.kv_heads
        picked = spend(losses, self.costs(), heads, budget - self.seam.geometry.state_bytes(self.model.dtype))
        rows = (tuple(self.candidate(place, layer) for place in row) for layer, row in enumerate(picked))
        return Plan(self.seam.geometry, tuple(rows), self.seam.fingerprint)

    def priced(self, losses: Floats) -> Tuner:
        """A tuner with other losses [recipes, layers, KV heads] in its table; what was measured is known to it."""
        other = replace(self, table=replace(self.table, losses=torch.from_numpy(losses).float()))
        other._losses.update(self._losses)
        return other

    def candidate(self, place: int, layer: int) -> Recipe:
        """A candidate as a head of a layer follows it: in a sliding layer its compression alone."""
        recipe = self.table.menu[place]
        return recipe if self.seam.geometry.layers[layer].window is None else recipe.within_window

    def place(self, plan: Plan, layer: int, head: int) -> int:
        """Where in the menu the recipe of a head is; PlanError where it is no candidate."""
        recipe = plan.recipes[layer][head]
        for place in range(len(self.table.menu)):
            if self.candidate(place, layer) == recipe:
                return place
        raise PlanError(f"layer {layer}, KV head {head} follows '{recipe}', which is none of the candidates")

    def predicted(self, plan: Plan) -> float | None:
        """The sum of what the table says of a plan's heads; None where one follows no candidate."""
        try:
            places = [
                (self.place(plan, layer, head), layer, head)
                for layer, row in enumerate(plan.recipes)
                for head in range(len(row))
            ]
        except PlanError:
            return None
        return sum(float(self.table.losses[place]) for place in places)

    def affordable(self, budget: int, seconds: float) -> int:
        """The most bytes up to `budget`, to a 32nd of it, whose chosen plan decodes a token in `seconds`.

        PlanError, with what was measured, where the plan of fewest bytes takes longer.
        """
        if self.token_seconds(self.chosen(budget)) <= seconds:
            return budget
        low, high = least_budget(self.costs(), self.seam.geometry.kv_heads), budget
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
        return self._costs

    @cached_property
    def _costs(self) -> Ints:
        geometry = self.seam.geometry
        costs = np.zeros((len(self.table.menu), len(geometry.layers)), dtype=np.int64)
        for row, recipe in zip(costs, self.table.menu, strict=True):
            for group, held in group_bytes(Plan.uniform(geometry, recipe), self.tokens, self.model.dtype):
                row[group.layer] = -(-held // len(group.heads))
        return costs

    def trial(self, role: ContenderKind, name: str, plan: Plan) -> Trial:
        """Answer the tuning questions under `plan`."""
        plan = self._whole(plan)
        found = self.lost(plan)
        held = predicted_bytes(plan, self.tokens, self.model.dtype)
        return Trial(role, name, plan, held, self.predicted(plan), found["loss"], found["right"], found["kept"])

    def lost(self, plan: Plan) -> dict[str, float]:
        """What the tuning documents' answers lose under `plan`, as JSON data: see `Trial`. Measured once."""
        plan = self._whole(plan)
        if plan.digest not in self._losses:
            self._losses[plan.digest] = once(self.folder, self.measured + plan.digest, lambda: self._lost(plan))
        return self._losses[plan.digest]

    def _lost(self, plan: Plan) -> dict[str, float]:
        recipes = {recipe for row in plan.recipes for recipe in row}
        on_shelf = all(map(shelved, recipes)) and (len(recipes) == 1 or all(one.budget is None for one in recipes))
        found = [
            mixture_score(one, plan) if on_shelf else answer_score(self.model, plan, one, self.seed)
            for one in self.answers
        ]
        kept, known = (sum(one.kept[place] for one in found) for place in (0, 1))
        return {
            "loss": sum(one.loss for one in found) / len(found),
            "right": sum(one.right for one in found) / len(found),
            "kept": kept / known if known else 1.0,
        }

    def contenders(self, budget: int, plans: Sequence[Plan] = ()) -> list[tuple[ContenderKind, str, Plan]]:
        """What is tried for a budget: `plans` within it, chosen plans along the front, and single methods at exactly
        its bytes."""
        listed: list[tuple[ContenderKind, str, Plan]] = [("dense", "dense", Plan.uniform(self.seam.geometry, ""))]
        for place, plan in enumerate(plans, 1):
            if plan.digest not in {one.digest for _, _, one in listed}:
                listed.append(("tuned", f"tuned at {budget / self.dense_bytes:.1%}, look {place}", plan))
        for step in STEPS:
            try:
                plan = self.chosen(int(step * budget))
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
