"""What cannot be steered is refused by name, before it is tried."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import attend
from headwise.attention.byproducts import row_lse
from headwise.engine.session import Session
from headwise.engine.steered import refuse_unmarked
from headwise.errors import HeadwiseError, PlanError, RecipeError, SessionError, ShapeError
from headwise.forms import Causal, Raised, Scoring
from headwise.kernels.dispatch import noted, only
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Mark
from tests.contract.drive import prefill
from tests.contract.steer.cases import PROMPT, SHAPE, steered, texts


@pytest.mark.parametrize("heads", ["", "x", "1.", "1-", "3-2", "1-2.0", "1.2.3", "-1", "all 3"])
def test_heads_that_name_nothing(heads: str) -> None:
    with pytest.raises(RecipeError, match="heads must be `all`, or layers and heads"):
        Recipe.parse(f"pasta(heads='{heads}')")


@pytest.mark.parametrize(("heads", "named"), [("2", "layer 2"), ("0-2", "layer 2"), ("1.4", "head 4 of layer 1")])
def test_heads_that_the_model_has_not(heads: str, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        Plan.uniform(SHAPE, f"pasta(heads='{heads}')")


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("pasta | paint", "both steer methods"),
        ("magicpig | pasta", "'magicpig' reads counts for more"),
        ("hyper | act", "'hyper' reads counts for more"),
        ("long_heads(24, positions='compact') | paint", "'long_heads' moves"),
        ("pasta(0)", "alpha must be greater than 0"),
        ("act(1.5)", "beta must be"),
        ("paint(-1)", "alpha must be"),
    ],
)
def test_recipes_that_cannot_be(sentence: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        Recipe.parse(sentence)


def test_a_mark_beyond_its_prompt() -> None:
    session = Session(Plan.uniform(SHAPE, "pasta"), marks=[Mark("emphasis", 30, PROMPT + 1)])
    with pytest.raises(SessionError, match=f"ends beyond the {PROMPT} tokens"):
        prefill(session, texts(), [PROMPT])
    assert session.seen == [0]
    other = Session(Plan.uniform(SHAPE, "pasta"), marks=[Mark("image", 30, PROMPT + 1)])
    prefill(other, texts(), [PROMPT])  # of a kind that it does not steer


def test_nothing_marked() -> None:
    plan = Plan.uniform(SHAPE, "pasta")
    with pytest.raises(SessionError, match="'pasta' steers what is marked as 'emphasis', but nothing is"):
        refuse_unmarked(plan, [Mark("image", 3, 4)])
    refuse_unmarked(plan, [Mark("emphasis", 3, 4)])
    refuse_unmarked(Plan.uniform(SHAPE, "pasta(1.0)"), [])
    refuse_unmarked(Plan.uniform(SHAPE, "act"), [])


def test_a_prompt_read_without_it_is_not_absorbed() -> None:
    text, session = texts(), Session(Plan.uniform(SHAPE, "act"))
    session.begin(PROMPT, "prefill")
    q, k, v = (x[0, :, :, :PROMPT] for x in (text.q, text.k, text.v))
    with pytest.raises(SessionError, match="'act' steers prompts"):
        session.absorb(0, q, k, v, Scoring(1.0))


def test_kernels_that_do_not_know_of_edits_refuse_them() -> None:
    q, k = torch.ones(1, 2, 3, 16), torch.ones(1, 3, 16)
    edit = Raised(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool), 1.0)
    scoring = Scoring(1.0, edit=edit)
    with noted() as records:
        attend(q, k, k, Causal(), scoring)
    refusals = {name: told for name, told in records[0].refusals.items() if name != "flex"}  # compiled for GPUs alone
    assert records[0].backend == "reference" and all("edited" in told[0] for told in refusals.values())
    with only("sdpa"), pytest.raises(HeadwiseError, match="edited scores"):
        attend(q, k, k, Causal(), scoring)
    with pytest.raises(HeadwiseError, match="without its edit"):
        row_lse(q, k, Causal(), scoring)
    with pytest.raises(ShapeError, match="one bool for each query head"):
        attend(q[:, :1], k, k, Causal(), scoring)
    with pytest.raises(HeadwiseError, match="more than 0"):
        Raised(edit.heads, edit.keys, 0.0)


def test_long_prompts_are_steered_without_a_matrix_of_them() -> None:
    """4,096 tokens of which half are marked: less than a tenth of what a matrix of scores takes."""
    tokens = 4096
    q, k = torch.randn(1, 2, tokens, 16), torch.randn(1, tokens, 16)
    keys = torch.arange(tokens)[None] < tokens // 2
    edit = Raised(torch.ones(1, 2, dtype=torch.bool), keys, 1.0)
    with torch.profiler.profile(profile_memory=True) as profile:
        attend(q, k, k, Causal(), Scoring(0.25, edit=edit))
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 2 * tokens * tokens * 4 / 10


def test_a_raise_needs_no_other_kernel() -> None:
    """PASTA's weights are the model's own with the marked keys added: no kernel is asked for edited scores."""
    for name, asked in (("pasta", False), ("paint", True)):
        session, _ = steered(Recipe.parse(name).steer, texts())
        assert any("edited" in reason for _, _, reason in session.ledger.refusals) == asked


@pytest.mark.parametrize("alpha", [5e-324, 1e-30, 0.999999])
def test_emphasis_of_any_strength(alpha: float) -> None:
    """From next to nothing outside the marks to next to no change."""
    text, part = texts(), Recipe.parse(f"pasta({alpha})").steer
    _, dense = steered(None, text)
    session, out = steered(part, text)
    assert torch.allclose(out.sum(-1), torch.ones(()), atol=1e-6)
    if alpha > 0.9:
        assert torch.allclose(out, dense, atol=1e-5)
    else:
        inside = torch.tensor([any(mark.start <= j < mark.end for mark in session.marks) for j in range(out.shape[-1])])
        assert torch.allclose(out[0, 0, :, -1, inside].sum(-1), torch.ones(()), atol=1e-6)
