"""Settings that cannot do what they say are refused, or the report says what was done instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.engine.session import Session
from headwise.errors import HeadwiseError, PlanError
from headwise.forms import Scoring
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import Text, geometry, kept, prefill, run

SHAPE = geometry()


@pytest.mark.parametrize("recipe", ["snapkv(35)", "h2o(35) | ada", "keydiff(5, sinks=2, recent=4)"])
def test_a_number_of_tokens_below_the_protected_ones_is_refused(recipe: str) -> None:
    always = "6" if recipe.startswith("keydiff") else "36"
    with pytest.raises(PlanError, match=rf"but {always} are always kept.*give {always} tokens"):
        Plan.uniform(SHAPE, recipe)
    Plan.uniform(SHAPE, recipe.replace("35", "36").replace("(5", "(6"))


def test_spans_count_as_protected_where_they_do_not_overlap_sinks() -> None:
    plan = Plan.uniform(SHAPE, "snapkv(40)")
    assert plan.protecting((2, 8)).spans == ((2, 8),)
    with pytest.raises(PlanError, match="41 are always kept"):
        plan.protecting((2, 9))


def test_a_plan_file_with_such_a_budget_is_refused(tmp_path: Path) -> None:
    plan = Plan.uniform(SHAPE, "snapkv(40)")
    object.__setattr__(plan, "spans", ((0, 100),))
    plan.save(tmp_path / "one.plan")
    with pytest.raises(PlanError, match="132 are always kept"):
        Plan.load(tmp_path / "one.plan")


def test_a_share_below_the_protected_tokens_is_told_in_the_report() -> None:
    session, _ = run(SHAPE, Recipe.parse("snapkv(0.1)"), Text.random(SHAPE, 100), [100], 0)
    assert session.ledger.floors == {0: (10, 36), 1: (10, 36)}
    assert "layer 0, 1: the budget gives 10 tokens per KV head, 36 are always kept" in session.report()
    longer, _ = run(SHAPE, Recipe.parse("snapkv(0.4)"), Text.random(SHAPE, 100), [100], 0)
    assert "always kept" not in longer.report()


def test_what_was_told_of_a_short_prompt_goes_as_it_grows() -> None:
    text = Text.random(SHAPE, 600)
    session = Session(Plan.uniform(SHAPE, "snapkv(0.1)"))
    for start in (0, 300):
        session.begin(300, "prefill")
        for layer in range(len(SHAPE.layers)):
            q, k, v = (x[layer, :, :, start : start + 300] for x in (text.q, text.k, text.v))
            session.step(layer, q, k, v, Scoring(0.25))
        assert bool(session.ledger.floors) == (start == 0)


@pytest.mark.parametrize("method", ["snapkv", "task_kv", "shot_kv", "critic"])
def test_a_window_longer_than_the_prompt_is_a_window_of_all_its_queries(method: str) -> None:
    text = Text.random(SHAPE, 60)
    long, whole = (run(SHAPE, Recipe.parse(f"{method}(40, recent=8, window={w})"), text, [60], 0)[0] for w in (500, 60))
    assert kept(long) == kept(whole)
    asked = f"'{method}' looks at the last 500 queries; there were 60, so all of them count"
    assert (asked in long.report()) and asked not in whole.report()
    if method == "snapkv":
        assert kept(long)[0][0][0] == [0, 1, 2, 3, *range(24, 60)], "every token voted, so the latest stay"


@pytest.mark.parametrize("recipe", ["int(3, 4)", "int(key=5)", "kivi(key=3)", "kivi(value=8)", "kivi(group=17)"])
def test_bits_that_no_codec_has_are_refused(recipe: str) -> None:
    with pytest.raises(HeadwiseError, match=r"must be (16, 8, 4 or 2|4 or 2|16, 32, 64 or 128), got"):
        Recipe.parse(recipe)
    with pytest.raises(HeadwiseError, match="int8 takes no values, got 1"):
        Recipe.parse("int8(4)")


@pytest.mark.parametrize(
    ("name", "sizes", "says"),
    [
        ("loki.basis", (2, 2, 16, 16), r"is \[2, 2, 16, 16\], but for this model it is \[2, 2, 32, 32\]"),
        ("double_sparsity.strength", (2, 2, 16), r"\[2, 2, 32\]"),
        ("loki.basis", (3, 2, 32, 32), r"\[2, 2, 32, 32\]"),
        ("loki.bassis", (2, 2, 32, 32), "did you mean 'basis'"),
        ("unknown.thing", (4, 2), r"it is \[2, 2\]"),
    ],
)
def test_a_calibration_of_another_model_is_refused(name: str, sizes: tuple[int, ...], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        Plan(SHAPE, Plan.uniform(SHAPE, "loki(0.5)").recipes, calibration={name: torch.zeros(sizes)})


def test_a_calibration_of_this_model_is_taken() -> None:
    basis = torch.eye(32).expand(2, 2, 32, 32)
    plan = Plan(SHAPE, Plan.uniform(SHAPE, "loki(0.5)").recipes, calibration={"loki.basis": basis, "notes": basis[0]})
    session = Session(plan)
    prefill(session, Text.random(SHAPE, 60), [60])
    assert session.seen == [60]
