"""The arms of a comparison: dense, what is asked for, controls of equal bytes, and one that must equal dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from headwise.cache.pages import PAGE
from headwise.calibrate.calibration import Calibration
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.errors import RecipeError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Seam, as_plan
from headwise.shapes import Amount, format_bytes

Role = Literal["dense", "plan", "baseline", "control"]
DEFAULT = "expected_attention"  # looks at the document alone, so that any later question may be asked
BASELINES = ("random", "streaming")
CONTROL = "streaming(1.0)"  # the whole way of an eviction, at a budget that evicts nothing
SLACK = 1.01  # a ready plan counts as fitting within one per cent: its pages are whole


@dataclass(frozen=True)
class Arm:
    """One row to be: what it is for, what it is called, and its plan."""

    role: Role
    name: str
    plan: Plan


@dataclass(frozen=True)
class Frame:
    """What bytes are counted for: the attached model, the prompt's tokens, the cache's element type.

    calibration: what was measured of the model, for recipes whose methods ask for that.
    """

    seam: Seam
    tokens: int
    dtype: torch.dtype
    calibration: Calibration | None = None

    @property
    def dense_bytes(self) -> int:
        """Keys and values of the whole prompt."""
        return self.seam.geometry.dense_bytes(self.tokens, self.dtype)

    def bytes_of(self, plan: Plan) -> int:
        """What `plan` will hold after the prompt."""
        return predicted_bytes(plan, self.tokens, self.dtype)

    def plan(self, recipe: Recipe) -> Plan:
        """The recipe for every head, with the calibration where a part of it uses one."""
        plan = as_plan(self.seam, recipe)
        if self.calibration is not None and any(part.own_card.calibrated for part in recipe.parts):
            return self.calibration.into(plan)
        return plan

    def fitted(self, sentence: str, target: int) -> Recipe:
        """The recipe with the largest eviction budget that stays within `target` bytes."""
        return fitted(self.plan(Recipe.parse(sentence)), target, self.tokens, self.dtype)


def recipe_arm(frame: Frame, sentence: str, target: int | None) -> Arm:
    """What `--recipe` asks for. Where it names no eviction budget, the largest within `target` bytes."""
    recipe = Recipe.parse(sentence)
    open_budget = recipe.evict is not None and recipe.evict.amount == Amount.of(1.0)
    if target is not None and open_budget:
        recipe = frame.fitted(sentence, target)
    plan = as_plan(frame.seam, recipe)
    fix = f"name '{recipe.evict.name}' without a budget to have it fitted" if recipe.evict else "let it evict too"
    _check_target(frame, str(recipe), plan, target, fix)
    return Arm("plan", str(recipe), plan)


def plan_arm(frame: Frame, path: Path, target: int | None = None) -> Arm:
    """What `--plan` asks for."""
    plan = as_plan(frame.seam, Plan.load(path))
    _check_target(frame, path.name, plan, target, "use a plan of fewer bytes")
    return Arm("plan", path.stem, plan)


def default_arm(frame: Frame, target: int, ready: Path | None) -> Arm:
    """The ready plan where the model has one that fits, else the default method at the largest budget that fits."""
    if ready is not None:
        arm = plan_arm(frame, ready)
        if frame.bytes_of(arm.plan) <= SLACK * target:
            return arm
    return recipe_arm(frame, DEFAULT, target)


def default_target(frame: Frame, share: float) -> int:
    """Bytes where nobody named a limit: `share` of dense, or the least the default method takes of a short prompt."""
    evict = Recipe.parse(DEFAULT).evict
    least = Recipe(evict=replace(evict, budget=evict.sinks + evict.recent))
    return max(int(share * frame.dense_bytes), frame.bytes_of(as_plan(frame.seam, least)))


def compared(frame: Frame, asked: list[Arm], baselines: bool) -> list[Arm]:
    """Dense, what is asked for; with `baselines` also controls at the bytes of each arm asked for, and the A/A one."""
    arms = [Arm("dense", "dense", as_plan(frame.seam, "")), *asked]
    if not baselines:
        return arms
    done: list[int] = []
    half_page = frame.seam.geometry.dense_bytes(PAGE // 2, frame.dtype)
    for arm in asked:
        held = frame.bytes_of(arm.plan)
        if held >= frame.dense_bytes or any(abs(held - other) <= 0.01 * other for other in done):
            continue
        done.append(held)
        for name in BASELINES:
            recipe = frame.fitted(name, held + half_page)  # the nearest size, as memory comes in pages
            if str(recipe) not in {one.name for one in arms}:
                arms.append(Arm("baseline", str(recipe), as_plan(frame.seam, recipe)))
    return [*arms, Arm("control", CONTROL, as_plan(frame.seam, CONTROL))]


def target_bytes(frame: Frame, budget: float | None, memory: int | None) -> int | None:
    """Bytes that `--share` (a share of dense bytes) or `--memory` allows; None when neither is given."""
    if budget is None:
        return memory
    return int((Amount.of(float(budget)).share or 0.0) * frame.dense_bytes)


def _check_target(frame: Frame, name: str, plan: Plan, target: int | None, fix: str) -> None:
    if target is not None and frame.bytes_of(plan) > target:
        raise RecipeError(
            f"'{name}' will take {format_bytes(frame.bytes_of(plan))} after {frame.tokens} tokens, more than the "
            f"{format_bytes(target)} allowed; "
            f"{fix}, or give --memory or --share more"
        )
