"""Methods that tell heads apart by a calibration: which heads they leave whole, and what they mean for the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.errors import HeadwiseError, PlanError
from headwise.geometry import Geometry
from headwise.methods import among_best
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import all_methods
from headwise.shapes import Amount

GEOMETRY = Geometry.uniform(4, 2, 16, 16, (None, None), 4096)
SCORES = torch.tensor([[0.9, 0.1], [0.5, 0.3]])


def planned(recipe: str, **tensors: torch.Tensor) -> list[list[str]]:
    """What each head follows."""
    parsed = Recipe.parse(recipe)
    told = {name.replace("__", "."): one for name, one in tensors.items()}
    return [[str(parsed.at(told, layer, head)) for head in range(2)] for layer in range(2)]


def test_among_best_rounds_up_and_takes_any_query_head() -> None:
    for share, count in ((0, 0), (0.01, 1), (0.25, 1), (0.26, 2), (0.75, 3), (1, 4)):
        found = [among_best(SCORES, share, layer, head) for layer in range(2) for head in range(2)]
        assert found == [x in sorted([0.9, 0.1, 0.5, 0.3])[4 - count :] for x in (0.9, 0.1, 0.5, 0.3)]
    by_query = torch.zeros(2, 2, 3)
    by_query[1, 0, 2] = 1
    assert [among_best(by_query, 1 / 12, i, j) for i in range(2) for j in range(2)] == [False, False, True, False]
    assert not among_best(None, 1.0, 0, 0)


def test_duo_leaves_the_heads_of_the_highest_gates_whole() -> None:
    found = planned("duo_prefill(sparsity=0.75) | duo(sparsity=0.5)", duo__gates=SCORES)
    assert found == [
        ["dense", "duo_prefill(sparsity=0.75) | duo"],
        ["duo_prefill(sparsity=0.75)", "duo_prefill(sparsity=0.75) | duo"],
    ]
    assert planned("duo") == [["duo"] * 2] * 2, "without a calibration every head streams"


def test_a_head_that_keeps_everything_shares_no_budget() -> None:
    plan = Plan.uniform(GEOMETRY, "razor(0.2, echo=0, induction=0.25) | ada")
    plan.calibration["razor.induction"] = SCORES[..., None]
    assert [[str(recipe) for recipe, _ in plan.groups(layer)] for layer in range(2)] == [
        ["dense", "razor(0.2, echo=0, induction=0.25) | ada"],
        ["razor(0.2, echo=0, induction=0.25) | ada"],
    ]


def test_razor_keeps_a_share_but_a_least_number() -> None:
    plan = Plan.uniform(GEOMETRY, "razor(0.2, least=300)")
    recipe = plan.recipes[0][0]
    assert [plan.count(recipe, 0, seen) for seen in (100, 1000, 2000)] == [100, 300, 400]


def test_moa_gives_each_head_its_span() -> None:
    spans = torch.tensor([[[64.0, 0.0], [128.0, 0.25]], [[0.0, 1.0], [64.0, 0.5]]])
    plan = Plan.uniform(GEOMETRY, "moa_prefill | moa")
    plan.calibration["moa.spans"] = spans
    groups = [plan.groups(layer) for layer in range(2)]
    counts = [[plan.count(recipe, 0, 1000) for recipe, _ in layer] for layer in groups]
    assert counts == [[64 + 64, 64 + 128 + 250], [1000, 64 + 64 + 500]]
    assert str(groups[1][0][0]) == "dense"
    reaches = [recipe.prefill.reach(1000) for recipe, _ in groups[0]]
    assert reaches == [64, 378]


def test_an_amount_may_be_a_sum() -> None:
    both = Amount(share=0.25, tokens=100)
    assert [both.tokens_of(seen) for seen in (50, 400, 1000)] == [50, 200, 350]
    assert str(both) == "100 + 0.25"


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("duo.gates", [()], (3,)),
        ("moa.spans", [(2,)], (3,)),
        ("razor.echo", [(), (2,)], (3,)),
        ("nats.head", [(17, 3)], (16, 3)),
        ("dhsa.hidden", [(67, 8), (67, 32)], (67,)),
        ("seer.key", [(48, 16)], (16, 48)),
    ],
)
def test_a_plan_refuses_tensors_of_other_sizes_than_declared(
    name: str, right: list[tuple[int, ...]], wrong: tuple[int, ...]
) -> None:
    plan = Plan.uniform(GEOMETRY, "")
    for sizes in right:
        assert replace(plan, calibration={name: torch.zeros(2, 2, *sizes)}).calibration
    with pytest.raises(PlanError, match=f"'{name}' is .*calibrate this model"):
        replace(plan, calibration={name: torch.zeros(2, 2, *wrong)})


def test_a_plan_refuses_tensors_that_no_method_reads() -> None:
    plan, tensor = Plan.uniform(GEOMETRY, ""), torch.zeros(2, 2)
    with pytest.raises(PlanError, match="'duo' has no calibration 'gate'; did you mean 'gates'"):
        replace(plan, calibration={"duo.gate": tensor})
    with pytest.raises(PlanError, match="'snapkv' has no calibration 'gates'; it reads none of its own"):
        replace(plan, calibration={"snapkv.gates": tensor})


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("duo", {"sparsity": 1.5}),
        ("duo_prefill", {"sparsity": -1}),
        ("razor", {"echo": 2}),
        ("moa_prefill", {"beta": 3}),
    ],
)
def test_bad_knobs_are_refused(name: str, knobs: dict[str, float]) -> None:
    with pytest.raises(HeadwiseError, match=next(iter(knobs))):
        all_methods()[name](**knobs)
