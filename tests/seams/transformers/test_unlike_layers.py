"""Models whose attention layers differ in heads and widths: dense is eager's, recipes hold the bytes foretold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as t

import headwise
from headwise.cost.prediction import predicted_bytes
from headwise.errors import PlanError, UnsupportedModel
from headwise.plan import Plan
from headwise.seams.transformers import drive
from headwise.seams.transformers.forward import cache_argument
from tests.engine.small import tokens

from .unlike import SHAPES, SIZES, gemma4, llama

MODELS = {"llama": llama}
if hasattr(t, "Gemma4ForCausalLM"):
    MODELS["gemma4"] = gemma4
RECIPES = [
    "snapkv(0.3, window=8)", "h2o(0.4, sinks=2, recent=6)", "streaming(0.3)", "expected_attention(0.4)", "int8",
    "kivi(window=8, group=16)", "quest(32, skip_layers=0)", "a_shape(4, window=32)",
    "snapkv(0.5, window=8) | int8 | quest(16, skip_layers=0)",
]  # fmt: skip
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def greedy(model: t.PreTrainedModel, ids: torch.Tensor, held: object, **how: object) -> torch.Tensor:
    how |= {cache_argument(type(model)): held, "max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    return model.generate(ids, pad_token_id=0, **how)


@every_model
def test_the_empty_recipe_writes_what_eager_attention_writes(build: Callable[[], t.PreTrainedModel]) -> None:
    model, ids, both = build(), tokens(61), tokens(40, rows=2)
    mask = torch.ones_like(both)
    mask[0, :17] = 0
    model.set_attn_implementation("eager")
    expected = greedy(model, ids, None), greedy(model, both, None, attention_mask=mask)
    held = headwise.Cache(model, "")
    assert torch.equal(greedy(model, ids, held), expected[0])
    assert torch.equal(greedy(model, both, headwise.Cache(model, ""), attention_mask=mask), expected[1])
    assert held.nbytes == held.session.predicted_bytes() and "layer   3" in held.report()


def test_geometry_and_rotation_are_found_layer_by_layer() -> None:
    seam = headwise.attach(llama())
    found = [(one.query_heads, one.kv_heads, one.key_width) for one in seam.geometry.layers]
    assert found == list(SHAPES) and all(one.value_width == one.key_width for one in seam.geometry.layers)
    assert [2 * rope.frequencies.numel() for rope in seam.ropes] == [width for _, _, width in SHAPES]


@every_model
@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_predicted_are_bytes_held_under(recipe: str, build: Callable[[], t.PreTrainedModel]) -> None:
    model, held = build(), None
    for chunk in (None, 34):
        held = headwise.Cache(model, recipe)
        drive.prefill(model, held, tokens(100), chunk)
        foretold = predicted_bytes(held.plan, 100, model.dtype)
        assert held.nbytes == held.session.predicted_bytes()
        assert held.session.cache_bytes() - held.session.memories.nbytes == foretold
    drive.decode(model, held, drive.feed(model, held, tokens(3, seed=2)), 70)
    assert held.session.cache_bytes() == held.session.predicted_bytes()


@every_model
@pytest.mark.parametrize("recipe", ["", "h2o(0.4, sinks=2, recent=6) | int8", "quest(16, skip_layers=0)"])
def test_saved_forked_and_cut_back_it_goes_on_the_same(
    recipe: str, build: Callable[[], t.PreTrainedModel], tmp_path: Path
) -> None:
    model = build()
    held = headwise.Cache(model, recipe)
    drive.prefill(model, held, tokens(90), 34)
    held.save(tmp_path / "a.session")
    cut, fork = held.fork(), held.fork()
    drive.feed(model, cut, tokens(3, seed=5))
    cut.truncate(90)
    loaded = headwise.Cache.load(model, recipe, tmp_path / "a.session")
    expected = drive.decode(model, held, drive.feed(model, held, tokens(2, seed=3)), 20)
    for other in (cut, fork, loaded):
        assert torch.equal(drive.decode(model, other, drive.feed(model, other, tokens(2, seed=3)), 20), expected)


@every_model
def test_a_plan_of_it_is_a_file_and_of_no_other_model(build: Callable[[], t.PreTrainedModel], tmp_path: Path) -> None:
    model = build()
    seam = headwise.attach(model)
    Plan.uniform(seam.geometry, "int8", seam.fingerprint).save(tmp_path / "a.plan")
    assert headwise.Cache(model, Plan.read(tmp_path / "a.plan")).plan.geometry == seam.geometry
    with pytest.raises(PlanError, match="the model has"):
        other = t.LlamaForCausalLM(t.LlamaConfig(**SIZES)).eval()
        headwise.Cache(other, Plan.uniform(seam.geometry, "int8"))


def test_layers_of_a_kind_that_no_session_follows_are_refused_by_name() -> None:
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES))
    model.config.layer_types = ["other"] * 4
    with pytest.raises(UnsupportedModel, match="layers of kind 'other'"):
        headwise.attach(model.eval())
