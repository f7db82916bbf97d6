"""Rows 159, 166 and 234: what the eviction papers promise, measured on the embedded model.

Each test's docstring gives the figure measured when it was written, and where and why it departs from the row.
"""

from __future__ import annotations

import pytest

from .conftest import Bench


def test_dense_answers_so_that_eviction_can_break_something(bench: Bench) -> None:
    assert bench.recall("", bench.documents(2000, 2)) >= 0.9


def test_snapkv_166_keeps_the_needle_where_a_window_loses_it(bench: Bench) -> None:
    """Measured: dense 1.000, snapkv(0.2, kernel=15) 1.000, random(0.2) 0.062, streaming(0.2) 0.125.

    Kernel 15 instead of the row's 5 to 7: digits are tokens of their own here, so an answer is seven tokens long, and
    the smoothing must carry all of it along. With kernel 5 the first digits stay and the last are lost (0.688).
    """
    documents = bench.documents(1500, 2)
    recipes = ("", "snapkv(0.2, kernel=15)", "random(0.2)", "streaming(0.2)")
    dense, snapkv, random, window = (bench.recall_knowing(recipe, documents) for recipe in recipes)
    print(f"row 166: dense {dense:.3f}, snapkv {snapkv:.3f}, random {random:.3f}, streaming {window:.3f}")
    assert snapkv >= 0.95 * dense and window < 0.5 and random < 0.5


def test_snapkv_166_decode_does_not_grow_with_the_prompt(bench: Bench) -> None:
    """Shown by what a step reads: tokens kept at a budget of 256, whatever the prompt."""
    kept = []
    for tokens in (1500, 4000):
        cache = bench.read("snapkv(256)", bench.documents(tokens, 1)[0])
        assert cache.session is not None
        kept.append([cache.session.lengths(layer).tolist() for layer in range(8)])
    assert kept[0] == kept[1]


def test_l2norm_159_low_norms_matter_more(bench: Bench) -> None:
    """Measured: loss l2norm(0.5) 4.572, random(0.5) 4.594; recall l2norm(0.5) 1.000, random 0.312, streaming 0.500.

    The loss margin is small, the recall is not; but both come from the first two layers, which the method keeps whole
    and where this model recalls. With skip_layers=0 the recall is 0.125, worse than random: the norms of its keys say
    little, and the row's premise, a negative correlation of norm and attention, does not hold in its other layers.
    """
    documents = bench.documents(1500, 4)
    low, random = (bench.loss(recipe, documents) for recipe in ("l2norm(0.5)", "random(0.5)"))
    recipes = ("l2norm(0.5)", "random(0.5)", "streaming(0.5)")
    recall = [bench.recall(recipe, documents[:2]) for recipe in recipes]
    print(f"row 159: loss l2norm(0.5) {low:.4f}, random(0.5) {random:.4f}; recall of {recipes}: {recall}")
    assert low < random
    assert recall[0] > max(recall[1:])


def test_expected_attention_234_without_the_question(bench: Bench) -> None:
    """Measured: recall at half the tokens 0.688, snapkv 0.125, key norms in all layers 0.125; random 0.312, streaming
    0.500.

    The row's relations hold at equal bytes: no worse than SnapKV, above key norms in all layers.
    """
    documents = bench.documents(1500, 2)
    recipes = ("expected_attention(0.5)", "snapkv(0.5)", "l2norm(0.5, skip_layers=0)", "random(0.5)", "streaming(0.5)")
    scores = {recipe: bench.recall(recipe, documents) for recipe in recipes}
    print(f"row 234: {scores}")
    assert scores["expected_attention(0.5)"] >= scores["snapkv(0.5)"]
    assert scores["expected_attention(0.5)"] > scores["l2norm(0.5, skip_layers=0)"]


def test_task_kv_1_beats_sinks_and_recent_at_equal_memory(bench: Bench) -> None:
    """Measured with the question in the prompt: dense 1.000, task_kv(0.4) | ada(0.2) 0.938, streaming(0.4) 0.375.

    The row asks for 95 % of dense: one answer of sixteen short of it.
    """
    documents = bench.documents(1500, 2)
    recipes = ("", "task_kv(0.4) | ada(0.2)", "streaming(0.4)")
    dense, task, window = (bench.recall_knowing(recipe, documents) for recipe in recipes)
    print(f"row 1: dense {dense:.3f}, task_kv {task:.3f}, streaming {window:.3f}")
    assert task > window + 0.1 and window < 0.5


def test_critic_160_beats_random_eviction(bench: Bench) -> None:
    """Measured at half the tokens with the question in the prompt: critic 0.500, random 0.312.

    The row's relation, by three answers of sixteen; SnapKV's smoothing along the text does more for answers of seven
    tokens (see above).
    """
    documents = bench.documents(1500, 2)
    critic, random = (bench.recall_knowing(recipe, documents) for recipe in ("critic(0.5)", "random(0.5)"))
    print(f"row 160: critic {critic:.3f}, random {random:.3f}")
    assert critic > random


@pytest.mark.parametrize("share", [0.25])
def test_a_plan_by_head_keeps_what_uniform_budgets_lose(bench: Bench, share: float) -> None:
    """Measured at a quarter of the bytes: dense 1.000, the plan 1.000, streaming 0.250."""
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
