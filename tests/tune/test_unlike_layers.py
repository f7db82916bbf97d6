"""Plans are found for models whose layers differ: heads of each layer by its own bytes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from headwise.calibrate.answers import dense_answers
from headwise.observe import Recall
from headwise.recipe import Recipe
from headwise.report import tune_page
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import prefill
from headwise.tune.knapsack import UNITS, spend
from headwise.tune.outcome import find
from headwise.tune.table import measure
from headwise.tune.tuner import Tuner
from tests.engine.small import tokens
from tests.seams.transformers.unlike import gemma4, llama

MENU = tuple(map(Recipe.parse, ("dense", "int8", "streaming(0.1)", "snapkv(0.2)")))


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(("build", "heads"), [(llama, [2, 4, 1, 3]), (gemma4, [4, 2, 4, 2])])
def test_a_plan_holds_what_was_allowed(build, heads: list[int], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, recall = build(), Recall(tokens(200), ((tokens(5, seed=2), tokens(3, seed=3)),))
    table = measure(model, [recall], MENU, tmp_path, quiet)
    tuner = Tuner(model, [dense_answers(model, recall)], table, 200)
    assert table.losses.shape == (4, 4, 4) and not table.losses[:, ~tuner.seam.geometry.there].any()
    assert torch.equal(measure(model, [recall], MENU, tmp_path, quiet).losses, table.losses)
    budget = tuner.dense_bytes // 2
    outcome = find(tuner, budget, None, quiet)
    assert outcome.chosen.held <= budget
    plan = tuner.chosen(budget)
    assert [len(row) for row in plan.recipes] == heads
    prefill(model, cache := Cache(model, plan), recall.ids, None)
    places = {recipe: place for place, recipe in enumerate(MENU)}
    counted = sum(tuner.costs()[places[recipe], layer] for layer, row in enumerate(plan.recipes) for recipe in row)
    assert cache.session.cache_bytes() == counted <= budget
    told = outcome.as_json()
    assert [len(row) for row in told["head_losses"]] == heads
    more = {"check": None, "data": "", "command": "", "versions": {}, "model": "it"}
    assert "Who got what" in tune_page._heads(told | more)


def test_the_knapsack_spends_on_the_heads_that_there_are() -> None:
    draw = np.random.default_rng(0)
    losses, costs, heads = draw.random((3, 2, 4)), draw.integers(1, 40, (3, 2)) * 1000, [4, 2]
    budget = int(1.5 * (costs.min(0) * heads).sum())
    chosen = spend(losses, costs, heads, budget)
    assert [len(row) for row in chosen] == heads
    found = sum(losses[recipe, i, j] for i, row in enumerate(chosen) for j, recipe in enumerate(row))
    assert sum(costs[recipe, i] for i, row in enumerate(chosen) for recipe in row) <= budget
    places = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
    least = min(
        sum(losses[recipe, layer, head] for recipe, (layer, head) in zip(pick, places, strict=True))
        for pick in product(range(3), repeat=len(places))
        if sum(costs[r, layer] for r, (layer, _) in zip(pick, places, strict=True)) <= budget - budget // UNITS
    )
    assert found <= least + 1e-12
