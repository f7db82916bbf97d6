"""Prices by measurement: heads that stand in for each other are seen, and exchanges only ever gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headwise.calibrate.answers import dense_answers
from headwise.cost.prediction import predicted_bytes
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.tune import prices
from headwise.tune.prices import alone, around, exchanged, refined
from headwise.tune.table import Table, measure
from headwise.tune.tuner import Tuner
from tests.engine.small import tokens
from tests.seams.transformers.unlike import gemma4, llama

MENU = tuple(map(Recipe.parse, ("dense", "int8", "streaming(0.1)", "streaming(0.1) | int8", "snapkv(0.3)")))


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module", params=[llama, gemma4])
def tuner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuner:
    model = request.param()
    recall = Recall(tokens(200), ((tokens(5, seed=2), tokens(3, seed=3)),))
    table = measure(model, [recall], MENU, tmp_path_factory.mktemp("tables"), quiet)
    return Tuner(model, [dense_answers(model, recall)], table, 200)


class Imagined(Tuner):
    """A tuner whose plans lose what a rule says."""

    def _lost(self, plan: Plan) -> dict[str, float]:
        return {"loss": self.rule(plan), "right": 0.0, "kept": 0.0}

    def rule(self, plan: Plan) -> float:
        """Layer 3 has two heads that stand in for each other, so that losing both is what counts; every other head is
        worth a little."""
        gone = {(i, j) for i, row in enumerate(plan.recipes) for j, one in enumerate(row) if one.evict is not None}
        both = {(3, 0), (3, 1)} <= gone
        return 0.01 * len(gone) + (2.0 if both else 0.0)


@pytest.fixture
def imagined(tmp_path: Path) -> Imagined:
    model, menu = llama(), MENU[::2][:2]
    shape = (len(menu), 4, 4)
    return Imagined(model, [], Table(menu, torch.ones(shape) * torch.tensor([0.0, 1.0])[:, None, None]), 200)


def test_a_head_alone_costs_what_was_measured(tuner: Tuner) -> None:
    found, geometry = alone(tuner, quiet), tuner.seam.geometry
    dense, place = Plan.uniform(geometry, ""), 3
    for layer, head in ((1, 0), (2, 0)):
        if geometry.layers[layer].window is None:
            plan = prices._with(tuner, dense, layer, head, place)
            assert float(found.table.losses[place, layer, head]) == pytest.approx(tuner.lost(plan)["loss"], rel=1e-4)
    assert float(found.table.losses[0].max()) < 1e-9 and bool((found.table.losses >= 0).all())
    assert not found.table.losses[:, ~geometry.there].any()


def test_sliding_layers_are_given_codecs_and_nothing_else() -> None:
    model = gemma4()
    recall = Recall(tokens(200), ((tokens(5, seed=2), tokens(3, seed=3)),))
    tuner = Tuner(model, [dense_answers(model, recall)], Table(MENU, torch.rand(5, 4, 4)), 200)
    plan = tuner.chosen(tuner.dense_bytes // 2)
    assert {recipe.evict for row in plan.recipes[::2] for recipe in row} == {None}
    assert any(recipe.compress is not None for row in plan.recipes[::2] for recipe in row)
    assert predicted_bytes(plan, 200, model.dtype) <= tuner.dense_bytes // 2
    assert tuner.predicted(plan) is not None
    windows = sum(2 * 4 * 24 * 16 * 4 for _ in range(2))  # keys and values, heads, tokens, width, bytes
    assert tuner.sliding_bytes == windows


def test_heads_that_stand_in_for_each_other_are_found_out(imagined: Imagined) -> None:
    budget = predicted_bytes(Plan.uniform(imagined.seam.geometry, "streaming(0.1)"), 200, imagined.model.dtype)
    budget += int(np.ptp(imagined.costs()[:, 3])) * 5 // 4  # one head of the last layer may be whole
    single = alone(imagined, quiet)
    assert single.table.losses[1, 3, 0] == pytest.approx(0.01)
    tuner, plans = refined(imagined, budget, quiet)
    assert float(tuner.table.losses[1, 3, :2].max()) > 0.05
    assert min(imagined.rule(plan) for plan in plans) < 1.0
    assert all(predicted_bytes(plan, 200, imagined.model.dtype) <= budget for plan in plans)


def test_exchanges_only_gain_and_hold_the_bytes(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "EXCHANGES", 6)
    budget = tuner.dense_bytes // 3
    plan = tuner.chosen(budget)
    better = exchanged(tuner, plan, budget, quiet)
    assert tuner.lost(better)["loss"] <= tuner.lost(plan)["loss"]
    assert predicted_bytes(better, tuner.tokens, tuner.model.dtype) <= budget


def test_prices_around_a_plan_are_changed_within_bounds(tuner: Tuner) -> None:
    other = around(tuner, tuner.chosen(tuner.dense_bytes // 3), quiet)
    ratio = (other.table.losses / tuner.table.losses.clamp_min(1e-12))[tuner.table.losses > 1e-6]
    assert float(ratio.min()) >= 0.0999 and float(ratio.max()) <= 10.001
