"""The arms of one prompt: what its options ask for within a number of bytes, and beside it dense, controls of equal
bytes, and one that must equal dense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from headwise.bench.arms import BASELINES, CONTROL, Arm
from headwise.bench.frame import Frame
from headwise.errors import RecipeError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import as_plan
from headwise.shapes import Amount, format_bytes

DEFAULT = "expected_attention"  # looks at the document alone, so that any later question may be asked
SLACK = 1.01  # a ready plan counts as fitting within one per cent: its pages are whole


def recipe_arm(frame: Frame, sentence: str, target: int | None) -> Arm:
    """What `--recipe` asks for. Where it names no eviction budget, the largest within `target` bytes."""
    recipe = Recipe.parse(sentence)
    open_budget = recipe.evict is not None and recipe.evict.amount == Amount.of(1.0)
    if target is not None and open_budget:
        recipe = frame.fitted(sentence, target)
    fix = f"name '{recipe.evict.name}' without a budget to have it fitted" if recipe.evict else "let it evict too"
    _check_target(frame, str(recipe), frame.plan(recipe), target, fix)
    return Arm("plan", str(recipe))


def plan_arm(frame: Frame, path: Path, target: int | None = None) -> Arm:
    """What `--plan` asks for."""
    plan = as_plan(frame.seam, Plan.load(path))
    _check_target(frame, path.name, plan, target, "use a plan of fewer bytes")
    return Arm("plan", str(path), is_plan=True)


def default_arm(frame: Frame, target: int, ready: Path | None) -> Arm:
    """The ready plan where the model has one that fits, else the default method at the largest budget that fits."""
    if ready is not None:
        arm = plan_arm(frame, ready)
        if frame.bytes_of(arm.plan(frame)) <= SLACK * target:
            return arm
    return recipe_arm(frame, DEFAULT, target)


def default_target(frame: Frame, share: float) -> int:
    """Bytes where nobody named a limit: `share` of dense, or the least the default method takes of a short prompt."""
    evict = Recipe.parse(DEFAULT).evict
    least = Recipe(evict=replace(evict, budget=evict.sinks + evict.recent))
    return max(int(share * frame.dense_bytes), frame.bytes_of(frame.plan(least)))


def compared(frame: Frame, asked: list[Arm], baselines: bool) -> list[Arm]:
    """Dense, what is asked for; with `baselines` also controls at the bytes of each arm asked for, and the A/A one."""
    arms = [Arm("dense", "dense"), *asked]
    if not baselines:
        return arms
    done: list[int] = []
    for arm in asked:
        plan = arm.plan(frame)
        held = frame.bytes_of(plan)
        if held >= frame.dense_bytes or any(abs(held - other) <= 0.01 * other for other in done):
            continue
        done.append(held)
        for name in BASELINES:
            recipe = _baseline(frame, name, plan)
            if str(recipe) not in {one.label for one in arms}:
                arms.append(Arm("baseline", str(recipe)))
    return [*arms, Arm("control", CONTROL)]


def _baseline(frame: Frame, name: str, plan: Plan) -> Recipe:
    """A control at the bytes of `plan`; with a codec of the plan where windows that it compresses take more in full."""
    codecs = {recipe.compress for row in plan.recipes for recipe in row if recipe.compress is not None}
    sentences = [name, *sorted(f"{name} | {Recipe(compress=codec)}" for codec in codecs)]
    for sentence in sentences[:-1]:
        try:
            return frame.fitted_like(sentence, plan)
        except RecipeError:
            continue
    return frame.fitted_like(sentences[-1], plan)


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
