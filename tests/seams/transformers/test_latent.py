"""Models of latent attention: dense is eager's, what is stored is the latent, methods work on it as on one head."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers as t

import headwise
from headwise.cost.meta_model import MetaModel
from headwise.cost.prediction import predicted_bytes
from headwise.errors import PlanError, UnsupportedModel
from headwise.plan import Plan
from headwise.seams.transformers import drive
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.latent import Latent
from tests.engine.small import tokens

from .latents import KINDS, builder
from .test_unlike_layers import greedy

LATENT_CACHED = "expand_kv" in inspect.getsource(t.models.deepseek_v3.modeling_deepseek_v3)
latent_cached = pytest.mark.skipif(not LATENT_CACHED, reason="this transformers caches expanded keys and values")
RECIPES = [
    "snapkv(0.3, window=8)", "h2o(0.4, sinks=2, recent=6)", "streaming(0.3)", "expected_attention(0.4)", "int8",
    "kivi(window=8, group=16)", "quest(32, skip_layers=0)", "a_shape(4, window=32)", "low_rank(window=8)",
    "snapkv(0.5, window=8) | int8 | quest(16, skip_layers=0)",
    "token_select(24, sinks=2, recent=6, positions='compact')",
]  # fmt: skip

UNDOES_ROTATION = ("expected_attention(0.4)", RECIPES[-1])


@pytest.fixture(scope="module")
def model() -> t.PreTrainedModel:
    return builder("DeepseekV3", first_k_dense_replace=3)()


@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_recipe_writes_what_eager_attention_writes(kind: str) -> None:
    model, ids, both = KINDS[kind](), tokens(61), tokens(40, rows=2)
    mask = torch.ones_like(both)
    mask[0, :17] = 0
    model.set_attn_implementation("eager")
    expected = greedy(model, ids, None), greedy(model, both, None, attention_mask=mask)
    with torch.no_grad():
        logits = model(ids).logits
    held = headwise.Cache(model, "")
    assert torch.equal(greedy(model, ids, held), expected[0])
    assert torch.equal(greedy(model, both, headwise.Cache(model, ""), attention_mask=mask), expected[1])
    assert held.nbytes == held.session.predicted_bytes()
    pieces = headwise.Cache(model, "")
    with torch.no_grad():
        found = torch.cat([forward(model, pieces, one).logits for one in ids.split([30, 20, 8, 1, 1, 1], dim=1)], 1)
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)


@latent_cached
@pytest.mark.parametrize("kind", KINDS)
def test_the_latent_is_what_is_stored_and_its_turned_part_is_found(kind: str) -> None:
    seam = headwise.attach(KINDS[kind]())
    attending = [one for one in seam.geometry.layers if one.attends]
    assert {(one.kind, one.kv_heads, one.key_width, one.value_width) for one in attending} == {("latent", 1, 48, 32)}
    if len(attending) == len(seam.geometry.layers):  # Kimi-Linear turns nothing
        assert seam.ropes is not None
        assert all(rope is not None and 2 * rope.frequencies.numel() == 16 for rope in seam.ropes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_predicted_are_bytes_held_under(recipe: str, model: t.PreTrainedModel) -> None:
    if not LATENT_CACHED and recipe in UNDOES_ROTATION:  # of which expanded keys have their last channels turned
        with pytest.raises(UnsupportedModel, match="how this model rotates its keys was not recognised"):
            headwise.Cache(model, recipe)
        return
    for chunk in (None, 34):
        held = headwise.Cache(model, recipe)
        drive.prefill(model, held, tokens(100), chunk)
        assert held.nbytes == held.session.predicted_bytes()
        foretold = predicted_bytes(held.plan, 100, model.dtype)
        assert held.session.cache_bytes() - held.session.memories.nbytes == foretold
    drive.decode(model, held, drive.feed(model, held, tokens(3, seed=2)), 70)
    assert held.session.cache_bytes() == held.session.predicted_bytes()


@pytest.mark.parametrize("recipe", ["", "h2o(0.4, sinks=2, recent=6) | int8", "quest(16, skip_layers=0)"])
def test_saved_forked_and_cut_back_it_goes_on_the_same(recipe: str, model: t.PreTrainedModel, tmp_path: Path) -> None:
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


@latent_cached
@pytest.mark.parametrize("recipe", ["think", "xkv", "cam(0.5)"])
def test_what_would_change_keys_alone_is_refused_before_work(recipe: str, model: t.PreTrainedModel) -> None:
    with pytest.raises(PlanError, match=f"has latent attention, but '{recipe.partition('(')[0]}'"):
        headwise.Cache(model, recipe)


@latent_cached
def test_deepseek_v3_takes_70272_bytes_a_token_from_its_config_alone() -> None:
    with torch.device("meta"):
        meta = MetaModel(t.DeepseekV3ForCausalLM(t.DeepseekV3Config()).bfloat16())
    assert meta.geometry.dense_bytes(1, torch.bfloat16) == 70_272
    whole = predicted_bytes(Plan.uniform(meta.geometry, ""), 4096, torch.bfloat16)
    assert whole == 4096 * (70_272 + 61 * 4)  # and a position in each layer


@latent_cached
def test_an_up_projection_that_is_no_plain_matrix_is_refused_with_the_fix() -> None:
    model = builder("DeepseekV3")()
    for layer in model.model.layers:
        layer.self_attn.kv_b_proj = torch.nn.Sequential(layer.self_attn.kv_b_proj)
    with pytest.raises(UnsupportedModel, match=r"by a Sequential that is not one plain matrix.*merge adapters"):
        headwise.attach(model)


@latent_cached
def test_keys_made_otherwise_than_of_the_latent_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = builder("DeepseekV3")()
    own = type(model.model.layers[0].self_attn)
    expand = own.expand_kv
    monkeypatch.setattr(own, "expand_kv", lambda self, c, r: [2 * x for x in expand(self, c, r)])
    with pytest.raises(UnsupportedModel, match="differ from its own"):
        headwise.attach(model)
    monkeypatch.setattr(own, "expand_kv", lambda self, c, r: [x[..., :-1] for x in expand(self, c, r)])
    with pytest.raises(UnsupportedModel):
        headwise.attach(model)


@pytest.mark.skipif(not hasattr(t, "DeepseekV32ForCausalLM"), reason="this transformers has no DeepSeek V3.2")
def test_without_weights_a_model_that_chooses_by_an_indexer_attends_by_itself() -> None:
    config = t.DeepseekV32Config(vocab_size=128, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    with torch.device("meta"):
        told = MetaModel(t.DeepseekV32ForCausalLM(config)).by_itself
    assert told is not None and re.search(r"indexer .*DeepSeek sparse attention", told)


def test_absorbed_attention_is_expanded_attention() -> None:
    """Of one head by hand: scores and outputs of DeepSeek-V2's section 2.1, with gradients."""
    torch.manual_seed(0)
    up = torch.nn.Linear(8, 3 * (5 + 4), bias=False)
    latent, turned, q = torch.randn(2, 1, 7, 8), torch.randn(2, 1, 7, 2), torch.randn(2, 3, 7, 7, requires_grad=True)
    keys, value = up(latent).view(2, 7, 3, 9).transpose(1, 2).split([5, 4], -1)
    key = torch.cat((keys, turned.expand(-1, 3, -1, -1)), -1)
    module = torch.nn.Module()
    module.kv_b_proj = up
    one = Latent.of(module, key, value, (latent, turned))
    assert one is not None
    k, v = one.keys_and_values
    torch.testing.assert_close(one.absorbed(q) @ k.mT, q @ key.mT)
    weights = (q @ key.mT).softmax(-1)
    torch.testing.assert_close(one.expanded(weights @ v), weights @ value)
    one.expanded(one.absorbed(q)[..., :8]).sum().backward()
    assert q.grad is not None and up.weight.grad is not None
    assert Latent.of(torch.nn.Module(), key, value, (latent, turned)) is None
    assert Latent.of(module, key, value[..., 1:], (latent, turned)) is None
