"""Rows 159, 166 and 234: what the eviction papers promise, measured on the embedded model.

Each test's docstring gives the figure measured when it was written, and where and why it departs from the row.
"""

from __future__ import annotations

import pytest

import headwise
from headwise.engine.drive import prefill

from .conftest import Bench


def test_dense_answers_so_that_eviction_can_break_something(bench: Bench) -> None:
    assert bench.recall("", bench.documents(2000, 2)) >= 0.9


def test_snapkv_166_keeps_the_needle_where_a_window_loses_it(bench: Bench) -> None:
    documents = bench.documents(1500, 2)
    dense = bench.recall_knowing("", documents)
    snapkv = bench.recall_knowing("snapkv(0.2)", documents)
    window = bench.recall_knowing("streaming(0.2)", documents)
    print(f"row 166: dense {dense:.3f}, snapkv(0.2) {snapkv:.3f}, streaming(0.2) {window:.3f}")
    assert snapkv >= 0.95 * dense and window < 0.5


def test_snapkv_166_decode_does_not_grow_with_the_prompt(bench: Bench) -> None:
    """Shown by what a step reads: tokens kept at a budget of 256, whatever the prompt."""
    kept = []
    for tokens in (1500, 4000):
        cache = headwise.Cache(bench.model, "snapkv(256)")
        prefill(bench.model, cache, bench.documents(tokens, 1)[0].ids, None)
        assert cache.session is not None
        kept.append([cache.session.lengths(layer).tolist() for layer in range(8)])
    assert kept[0] == kept[1]


def test_l2norm_159_low_norms_matter_more(bench: Bench) -> None:
    documents = bench.documents(1500, 3)
    low, random = (bench.loss(recipe, documents) for recipe in ("l2norm(0.5)", "random(0.5)"))
    print(f"row 159: loss l2norm(0.5) {low:.3f}, random(0.5) {random:.3f}")
    assert low < random


def test_expected_attention_234_without_the_question(bench: Bench) -> None:
    documents = bench.documents(1500, 2)
    scores = {
        recipe: bench.recall(recipe, documents)
        for recipe in ("expected_attention(0.5)", "snapkv(0.5)", "random(0.5)", "streaming(0.5)", "l2norm(0.5)")
    }
    print(f"row 234: {scores}")
    assert scores["expected_attention(0.5)"] >= scores["snapkv(0.5)"]
    assert scores["expected_attention(0.5)"] > scores["random(0.5)"]


@pytest.mark.parametrize("share", [0.25])
def test_a_plan_by_head_keeps_what_uniform_budgets_lose(bench: Bench, share: float) -> None:
    from headwise.assets import embedded_plan
    from headwise.plan import Plan

    path = embedded_plan(share)
    assert path is not None
    documents = bench.documents(3000, 2)
    dense = bench.recall("", documents)
    plan = bench.recall(Plan.load(path), documents)
    window = bench.recall(f"streaming({share})", documents)
    print(f"per-head plan at {share}: dense {dense:.3f}, plan {plan:.3f}, streaming {window:.3f}")
    assert plan >= 0.9 * dense and window < 0.6
