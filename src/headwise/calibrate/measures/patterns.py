"""Which prefill pattern suits each KV head: the one of least output error among patterns of equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headwise.attention import View, attend
from headwise.calibrate.look import Observer, observe
from headwise.calibrate.material import Material
from headwise.calibrate.measures import Found, measure
from headwise.errors import PlanError
from headwise.forms import Causal
from headwise.methods.prefill.sale import Sale
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.drive import Progress

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


def pattern_errors(
    model: PreTrainedModel, recipes: Sequence[Recipe], documents: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Squared output error of each recipe's pattern, float32 [recipes, layers, kv_heads], summed over documents.

    Each head is judged alone, on the exact inputs of its layer. documents: ids [1, n] each.
    """
    if wrong := [str(recipe) for recipe in recipes if recipe.prefill is None]:
        raise PlanError(f"no prefill pattern in {wrong}; give recipes such as a_shape(64, window=512)")
    trial = _Trial(tuple(recipes), torch.zeros(len(recipes), *attach(model).geometry.by_head))
    observe(model, trial, documents)
    return trial.errors


@dataclass(frozen=True, eq=False)
class _Thresholds(Observer):
    """Halves each head's threshold until the mean error of its output is small enough on what it looks at."""

    error: float
    least: float
    thresholds: torch.Tensor  # [layers, KV heads]

    def look(self, view: View) -> None:
        own = self.thresholds[view.layer]
        for place, head in enumerate(view.heads):
            alone = view.subset((place,))
            dense = attend(alone.queries, alone.keys, alone.values, Causal(), view.scoring).out
            while own[head] > 0 and self._error(alone, dense, float(own[head])) > self.error:
                own[head] = own[head] / 2 if own[head] > self.least else 0.0

    def _error(self, view: View, dense: torch.Tensor, threshold: float) -> float:
        where = Sale(threshold).where(replace(view, granted={**view.granted, "calibration": {}}))
        out = attend(view.queries, view.keys, view.values, where, view.scoring).out
        return float((out - dense).float().abs().sum() / dense.float().abs().sum())


def sale_thresholds(
    model: PreTrainedModel, documents: Sequence[torch.Tensor], error: float = 0.05, most: float = 0.064
) -> dict[str, torch.Tensor]:
    """Plan tensor `sale.threshold` [layers, kv_heads]: the largest of most, most / 2, ... at which no document costs a
    head more than `error` of its output (summed absolute difference over summed absolute value); 0, which reads
    everything, where `most` / 64 costs more. documents: ids [1, n] each, of the kind the model will read.

    SALE's calibration (2505.24179, section 4), whose bound is on the absolute difference.
    """
    found = _Thresholds(error, most / 64, torch.full(attach(model).geometry.by_head, most))
    observe(model, found, documents)
    return {"sale.threshold": found.thresholds}


def pattern_plan(model: PreTrainedModel, recipes: Sequence[Recipe | str], documents: Sequence[torch.Tensor]) -> Plan:
    """A plan that gives every KV head its pattern of least error on the documents (MInference, algorithm 1)."""
    seam = attach(model)
    parsed = [Recipe.parse(one) if isinstance(one, str) else one for one in recipes]
    errors = pattern_errors(model, parsed, documents)
    best = errors.argmin(0).tolist()
    rows = tuple(
        tuple(parsed[place] for place in layer[:count])
        for layer, count in zip(best, seam.geometry.kv_heads, strict=True)
    )
    return replace(Plan(seam.geometry, rows, seam.fingerprint), calibration={"pattern_errors": errors})


@measure("patterns", cost=353)
def measured_patterns(material: Material, progress: Progress) -> Found:
    """Output error of prefill patterns of equal cost (MInference)."""
    recipes = candidates(max(ids.shape[1] for ids in material.documents), material.share)
    errors = pattern_errors(material.model, [Recipe.parse(one) for one in recipes], material.documents)
    return {"recipes": list(recipes), "share": material.share}, {"pattern_errors": errors}


@measure("sale", cost=264)
def measured_sale(material: Material, progress: Progress) -> Found:
    """The largest threshold of each head that costs little of its output (SALE)."""
    return {}, sale_thresholds(material.model, material.documents)
