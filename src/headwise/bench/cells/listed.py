"""What a comparison lists: arms by method and budget, and the baselines of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from headwise.bench.arms import BASELINES, CONTROL, Arm
from headwise.errors import HeadwiseError, RecipeError
from headwise.recipe import Recipe
from headwise.registry import methods
from headwise.shapes import Amount

BUDGETS = (0.1, 0.25)  # shares of dense bytes; a third one would take the default table beyond ten minutes


def arms_of(sentences: Iterable[str], plans: Sequence[Path], budgets: Sequence[float]) -> list[Arm]:
    """Dense, a row for each recipe (at each budget where its own is open) and plan, their baselines, the control."""
    asked: list[Arm] = []
    for sentence in sentences:
        asked += _rows(sentence, budgets)
    asked += [Arm("plan", str(path), peer=str(path), is_plan=True) for path in plans]
    baselines: dict[str, list[Arm]] = {}
    for arm in asked:
        if arm.peer and arm.peer not in baselines:
            share = float(arm.peer) if _is_share(arm.peer) else None
            like = arm if share is None else None
            baselines[arm.peer] = [Arm("baseline", name, arm.peer, share, like) for name in BASELINES]
    equal = [arm for group in baselines.values() for arm in group]
    taken = {(arm.sentence, arm.peer) for arm in equal}
    asked = [arm for arm in asked if (arm.sentence, arm.peer) not in taken]
    return list(dict.fromkeys([Arm("dense", "dense"), *asked, *equal, Arm("control", CONTROL)]))


def default_sentences() -> list[str]:
    """Every method: alone where it can stand so, a sharing of budgets with snapkv, whose own row is the uniform one."""
    parts = ("prefill", "evict", "compress", "select")
    alone = [name for part in parts for name in methods(part) if name != "snapkv"]
    return [*alone, *(f"snapkv | {name}" for name in methods("budget"))]


def check_budgets(budgets: Sequence[float]) -> None:
    """Refuse budgets that are no shares of dense bytes."""
    if not budgets:
        raise HeadwiseError("no budget is given; give at least one, such as --share 0.25")
    for budget in budgets:
        try:
            Amount.of(float(budget))
        except HeadwiseError as error:
            raise HeadwiseError(f"{budget:g} of dense bytes: {error}") from None


def _rows(sentence: str, budgets: Sequence[float]) -> list[Arm]:
    """The rows of one recipe. An open eviction budget is fitted to each share of dense bytes; an open selection budget
    becomes that share of the tokens, so that it reads what its baselines hold."""
    recipe = Recipe.parse(sentence)
    whole = Amount.of(1.0)
    if recipe.evict is not None and recipe.evict.amount == whole:
        return [Arm("plan", sentence, f"{share:g}", share) for share in budgets]
    if recipe.evict is not None or recipe.compress is not None:
        return [Arm("plan", sentence, str(recipe))]
    knobs = {field.name for field in fields(recipe.select)} if recipe.select is not None else set()
    if "budget" not in knobs:
        return [Arm("plan", sentence)]
    if Amount.of(recipe.select.budget) != whole:
        return [Arm("plan", sentence, _peer_of(recipe.select.budget))]
    name = recipe.select.name
    if str(recipe) != name:
        raise RecipeError(f"'{sentence}' leaves the budget of '{name}' open; give it one, such as {name}(0.25)")
    return [Arm("plan", f"{name}({float(share)!r})", f"{share:g}") for share in budgets]


def _peer_of(budget: Any) -> str:
    """Baselines exist for a share; a selection of so many tokens has none of equal bytes."""
    amount = Amount.of(budget)
    return f"{amount.share:g}" if amount.share is not None else ""


def _is_share(peer: str) -> bool:
    try:
        return 0 < float(peer) <= 1
    except ValueError:
        return False
