"""Which prefill pattern suits each KV head: the one of least output error among patterns of equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headwise.attention import View, attend
from headwise.errors import PlanError
from headwise.forms import Causal
from headwise.observe import Found, Material, Observer, Progress, Subject, measure
from headwise.plan import Plan
from headwise.recipe import Recipe

BLOCK = 64  # tokens per block of the block-sparse candidate, as in the paper's kernel


def candidates(tokens: int, share: float) -> tuple[str, ...]:
    """Patterns that each compute about `share` of the causal pairs of a prompt of `tokens`: MInference's search space
    (2407.02490, section 3.2) of A-shape, vertical-slash in three mixtures, and block-sparse."""
    if not 0 < share <= 1:
        raise PlanError(f"a share of {share} is not above 0 and at most 1; 0.25 computes a quarter of the pairs")
    row = max(2, round(share * tokens / 2))  # keys that a query reads on average
    lines = max(4, round(share * tokens))  # a line has half as many pairs as there are tokens
    sinks = min(BLOCK, row // 2)
    mixed = [(round(lines * part), lines - round(lines * part)) for part in (0.2, 0.5, 0.8)]
    slashes = [f"vertical_slash({v}, slashes={s}, first={min(30, v)}, nearest={min(64, s)})" for v, s in mixed]
    return (f"a_shape({sinks}, window={row - sinks})", *slashes, f"block_sparse({max(1, row // BLOCK)}, size={BLOCK})")


@dataclass(frozen=True, eq=False)
class _Trial(Observer):
    """Adds up the squared distance of each candidate's output from dense attention's, by layer and KV head."""

    recipes: tuple[Recipe, ...]
    errors: torch.Tensor  # [candidates, layers, KV heads]

    def look(self, view: View) -> None:
        dense = self._output(view, Recipe())
        for place, recipe in enumerate(self.recipes):
            error = (self._output(view, recipe) - dense).float().square().sum((1, 2, 3))
            self.errors[place, view.layer, list(view.heads)] += error.cpu()

    def _output(self, view: View, recipe: Recipe) -> torch.Tensor:
        where = Causal() if recipe.prefill is None else recipe.prefill.where(view)
        return attend(view.queries, view.keys, view.values, where, view.scoring).out


def pattern_errors(subject: Subject, recipes: Sequence[Recipe], documents: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared output error of each recipe's pattern, float32 [recipes, layers, kv_heads], summed over documents.

    Each head is judged alone, on the exact inputs of its layer. documents: ids [1, n] each.
    """
    if wrong := [str(recipe) for recipe in recipes if recipe.prefill is None]:
        raise PlanError(f"no prefill pattern in {wrong}; give recipes such as a_shape(64, window=512)")
    trial = _Trial(tuple(recipes), torch.zeros(len(recipes), *subject.geometry.by_head))
    subject.observe(trial, documents)
    return trial.errors


def pattern_plan(subject: Subject, recipes: Sequence[Recipe | str], documents: Sequence[torch.Tensor]) -> Plan:
    """A plan that gives every KV head its pattern of least error on the documents (MInference, algorithm 1)."""
    parsed = [Recipe.parse(one) if isinstance(one, str) else one for one in recipes]
    errors = pattern_errors(subject, parsed, documents)
    best = errors.argmin(0).tolist()
    rows = tuple(
        tuple(parsed[place] for place in layer[:count])
        for layer, count in zip(best, subject.geometry.kv_heads, strict=True)
    )
    return replace(Plan(subject.geometry, rows, subject.fingerprint), calibration={"pattern_errors": errors})


@measure("patterns", cost=353)
def measured_patterns(material: Material, progress: Progress) -> Found:
    """Output error of prefill patterns of equal cost (MInference)."""
    recipes = candidates(max(ids.shape[1] for ids in material.documents), material.share)
    errors = pattern_errors(material.subject, [Recipe.parse(one) for one in recipes], material.documents)
    return {"recipes": list(recipes), "share": material.share}, {"pattern_errors": errors}
