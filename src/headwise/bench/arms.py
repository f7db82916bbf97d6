"""Arms: what is to be compared, before any prompt is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from headwise.bench.frame import Frame
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import as_plan

Role = Literal["dense", "plan", "baseline", "control"]
BASELINES = ("random", "streaming")
CONTROL = "streaming(1.0)"  # the whole way of an eviction, at a budget that evicts nothing


@dataclass(frozen=True)
class Arm:
    """One row to be. Its plan may depend on the prompt's length, so it is made for each prompt.

    sentence: a recipe, or the path of a plan file where `is_plan`. share: dense bytes that the eviction budget is
    fitted to; None takes the recipe as written. like: the arm whose bytes it is fitted to instead. peer: what its
    baselines have in common with it, a share of dense or its own name; "" where it has none.
    """

    role: Role
    sentence: str
    peer: str = ""
    share: float | None = None
    like: Arm | None = None
    is_plan: bool = False

    @property
    def label(self) -> str:
        """The arm's name in tables: the recipe, with the budget it is fitted to, or the plan file's name."""
        return label_of(self.facts())

    def facts(self) -> dict[str, Any]:
        """The arm as plain JSON data."""
        return asdict(self)

    def plan(self, frame: Frame) -> Plan:
        """The arm's plan for this prompt; RecipeError where no budget can take so few bytes."""
        if self.is_plan:
            return as_plan(frame.seam, Plan.read(self.sentence))
        if self.share is not None:
            return frame.plan(frame.fitted(self.sentence, int(self.share * frame.dense_bytes)))
        if self.like is not None:
            return frame.plan(frame.fitted_like(self.sentence, self.like.plan(frame)))
        return frame.plan(Recipe.parse(self.sentence))


def label_of(facts: dict[str, Any]) -> str:
    """The label of an arm, of its facts."""
    sentence: str = facts["sentence"]
    if facts["is_plan"]:
        return Path(sentence).stem
    return f"{sentence} @ {facts['peer']}" if facts["share"] or facts["like"] else sentence
