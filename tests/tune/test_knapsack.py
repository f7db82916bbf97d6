"""The knapsack against every choice there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from headwise.errors import PlanError
from headwise.tune.knapsack import MOST_KINDS, UNITS, _spent, spend


def best_by_hand(losses: np.ndarray, costs: np.ndarray, budget: int) -> float:
    recipes, layers, heads = losses.shape
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    sums = [
        sum(losses[r, layer, head] for r, (layer, head) in zip(pick, places, strict=True))
        for pick in product(range(recipes), repeat=len(places))
        if sum(costs[r, layer] for r, (layer, _) in zip(pick, places, strict=True)) <= budget
    ]
    return min(sums)


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_within_the_bytes_loses_less(seed: int) -> None:
    draw = np.random.default_rng(seed)
    losses, costs = draw.random((3, 2, 3)), draw.integers(1, 40, (3, 2)) * 1000
    budget = int(1.5 * costs.min(0).sum() * 3)
    chosen = spend(losses, costs, [3, 3], budget)
    found = sum(losses[chosen[layer][head], layer, head] for layer in range(2) for head in range(3))
    held = sum(costs[chosen[layer][head], layer] for layer in range(2) for head in range(3))
    assert held <= budget
    # costs round up to a part of the budget: nothing that takes so much less may be better
    assert found <= best_by_hand(losses, costs, budget - budget // UNITS) + 1e-12


def test_all_that_is_harmless_costs_nothing_and_the_one_head_that_matters_is_kept() -> None:
    losses = np.zeros((2, 3, 4))
    losses[1, 1, 2] = 1.0
    chosen = spend(losses, np.array([[100] * 3, [10] * 3]), [4] * 3, 110 + 11 * 10)
    assert chosen[1][2] == 0 and sum((row == 1).sum() for row in chosen) >= 10


def test_too_few_bytes_are_refused_with_bytes_that_do() -> None:
    losses, costs = np.zeros((2, 2, 2)), np.array([[10_000] * 2, [5_000] * 2])
    with pytest.raises(PlanError, match="20KiB or more"):
        spend(losses, costs, [2, 2], 19_000)
    assert all((row == 1).all() for row in spend(losses, costs, [2, 2], 20 * 1024))


def test_a_layer_has_few_kinds_of_store_and_still_fits() -> None:
    draw = np.random.default_rng(0)
    losses, costs = draw.random((12, 2, 16)), np.repeat(np.arange(1, 13)[:, None], 2, 1) * 1000
    budget = 32 * 6000
    chosen = spend(losses, costs, [16, 16], budget)
    assert all(len(set(row.tolist())) <= MOST_KINDS for row in chosen)
    assert sum(costs[recipe, layer] for layer in range(2) for recipe in chosen[layer]) <= budget


@pytest.mark.parametrize("spare", [1.0, 1.02, 1.5, 4.0])
def test_many_heads_fit_and_lose_next_to_nothing_more_than_any_choice_must(spare: float) -> None:
    """Beyond CORE heads most are settled by a price. No choice loses less than the bound of Lagrange at that price."""
    draw = np.random.default_rng(0)
    kept = draw.random(20) * 0.9 + 0.05
    costs = np.repeat((kept * 1e6).astype(np.int64)[:, None], 60, 1)
    scale, noise = np.exp(draw.normal(0, 2, (1, 60, 4))), np.exp(draw.normal(0, 0.3, (20, 60, 4)))
    losses = (1 - kept)[:, None, None] ** 2 * scale * noise
    budget = int(spare * costs.min() * 240 * UNITS / (UNITS - 1)) + UNITS
    each, of = losses.reshape(20, -1).T, np.repeat(costs[:, :, None], 4, 2).reshape(20, -1).T
    chosen, places = _spent(each, of, budget), np.arange(240)
    assert int(of[places, chosen].sum()) <= budget
    less = budget - budget // UNITS  # the rest may stay idle, as costs round up
    bounds = [(each + price * of).min(1).sum() - price * less for price in np.geomspace(1e-9, 1e-2, 500)]
    lost = float(each[places, chosen].sum())
    print(f"{spare}: {lost:.3f} nats, {lost / max(bounds) - 1:.2%} over the bound")
    assert lost <= 1.01 * max(bounds)
