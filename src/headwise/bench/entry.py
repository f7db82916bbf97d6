"""What is to be compared, before any prompt is known: rows by method and budget, and the baselines of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from headwise.bench.arms import BASELINES, CONTROL, Arm, Frame, Role
from headwise.cache.pages import PAGE
from headwise.errors import HeadwiseError, RecipeError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from headwise.seams.transformers.cache import as_plan
from headwise.shapes import Amount

BUDGETS = (0.1, 0.25, 0.5)  # shares of dense bytes


@dataclass(frozen=True)
class Entry:
    """One row to be. Its plan depends on the prompt's length, so it is made for each document.

    sentence: a recipe, or the path of a plan file where `is_plan`. share: dense bytes that the eviction budget is
    fitted to; None takes the recipe as written. like: the entry whose bytes it is fitted to instead. peer: what its
    baselines have in common with it, a share of dense or its own name; "" where it has none.
    """

    role: Role
    sentence: str
    peer: str = ""
    share: float | None = None
    like: Entry | None = None
    is_plan: bool = False

    @property
    def label(self) -> str:
        """The entry's name in tables: the recipe, with the budget it is fitted to."""
        return label_of(self.facts())

    def facts(self) -> dict[str, Any]:
        """The entry as plain JSON data."""
        return asdict(self)

    def arm(self, frame: Frame) -> Arm:
        """The entry's plan for this prompt; RecipeError where no budget can take so few bytes."""
        if self.is_plan:
            path = Path(self.sentence)
            return Arm("plan", path.stem, as_plan(frame.seam, Plan.read(path)))
        recipe = Recipe.parse(self.sentence)
        if self.share is not None:
            recipe = frame.fitted(self.sentence, int(self.share * frame.dense_bytes))
        elif self.like is not None:
            held = frame.bytes_of(self.like.arm(frame).plan)
            half_page = frame.seam.geometry.dense_bytes(PAGE // 2, frame.dtype)  # the nearest size: bytes come in pages
            recipe = frame.fitted(self.sentence, held + half_page)
        return Arm(self.role, str(recipe), frame.plan(recipe))


def label_of(facts: dict[str, Any]) -> str:
    """The label of an entry, of its facts."""
    sentence: str = facts["sentence"]
    if facts["is_plan"]:
        return Path(sentence).stem
    return f"{sentence} @ {facts['peer']}" if facts["share"] or facts["like"] else sentence


def entries(sentences: Iterable[str], plans: Sequence[Path], budgets: Sequence[float]) -> list[Entry]:
    """Dense, a row for each recipe (at each budget where its own is open) and plan, their baselines, the control."""
    asked: list[Entry] = []
    for sentence in sentences:
        asked += _rows(sentence, budgets)
    asked += [Entry("plan", str(path), peer=str(path), is_plan=True) for path in plans]
    baselines: dict[str, list[Entry]] = {}
    for entry in asked:
        if entry.peer and entry.peer not in baselines:
            share = float(entry.peer) if _is_share(entry.peer) else None
            like = entry if share is None else None
            baselines[entry.peer] = [Entry("baseline", name, entry.peer, share, like) for name in BASELINES]
    equal = [entry for group in baselines.values() for entry in group]
    taken = {(entry.sentence, entry.peer) for entry in equal}
    asked = [entry for entry in asked if (entry.sentence, entry.peer) not in taken]
    return list(dict.fromkeys([Entry("dense", "dense"), *asked, *equal, Entry("control", CONTROL)]))


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


def _rows(sentence: str, budgets: Sequence[float]) -> list[Entry]:
    """The rows of one recipe. An open eviction budget is fitted to each share of dense bytes; an open selection budget
    becomes that share of the tokens, so that it reads what its baselines hold."""
    recipe = Recipe.parse(sentence)
    whole = Amount.of(1.0)
    if recipe.evict is not None and recipe.evict.amount == whole:
        return [Entry("plan", sentence, f"{share:g}", share) for share in budgets]
    if recipe.evict is not None or recipe.compress is not None:
        return [Entry("plan", sentence, str(recipe))]
    knobs = {field.name for field in fields(recipe.select)} if recipe.select is not None else set()
    if "budget" not in knobs:
        return [Entry("plan", sentence)]
    if Amount.of(recipe.select.budget) != whole:
        return [Entry("plan", sentence, _peer_of(recipe.select.budget))]
    name = recipe.select.name
    if str(recipe) != name:
        raise RecipeError(f"'{sentence}' leaves the budget of '{name}' open; give it one, such as {name}(0.25)")
    return [Entry("plan", f"{name}({float(share)!r})", f"{share:g}") for share in budgets]


def _peer_of(budget: Any) -> str:
    """Baselines exist for a share; a selection of so many tokens has none of equal bytes."""
    amount = Amount.of(budget)
    return f"{amount.share:g}" if amount.share is not None else ""


def _is_share(peer: str) -> bool:
    try:
        return 0 < float(peer) <= 1
    except ValueError:
        return False
