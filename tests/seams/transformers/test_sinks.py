"""Families whose softmax sinks join (gpt-oss and others) compute under the empty recipe what their eager attention
does, and follow every kind of recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import SessionError
from headwise.seams.transformers.drive import prefill
from tests.seams.transformers.pieces import ids_of, logits
from tests.seams.transformers.test_models import SMALL, greedy

EXPERTS = dict(num_local_experts=2, num_experts_per_tok=1)
MIMO = dict(
    head_dim=24, v_head_dim=16, sliding_window=24, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
)  # fmt: skip
MAKERS = {
    "gpt_oss": lambda: t.GptOssForCausalLM(t.GptOssConfig(**SMALL, **EXPERTS, head_dim=16, sliding_window=24)),
    "granite_swa": lambda: t.GraniteSWAForCausalLM(t.GraniteSWAConfig(**SMALL, sliding_window=24)),
    "granitemoe_swa": lambda: t.GraniteMoeSWAForCausalLM(t.GraniteMoeSWAConfig(**SMALL, **EXPERTS, sliding_window=24)),
    "mimo_v2_flash": lambda: t.MiMoV2FlashForCausalLM(t.MiMoV2FlashConfig(**SMALL, **MIMO)),
    "flint": lambda: t.FlintForCausalLM(t.FlintConfig(**SMALL, **EXPERTS, head_dim=16, sliding_window=24)),
}
CLASSES = {
    "gpt_oss": "GptOssForCausalLM",
    "granite_swa": "GraniteSWAForCausalLM",
    "granitemoe_swa": "GraniteMoeSWAForCausalLM",
    "mimo_v2_flash": "MiMoV2FlashForCausalLM",
    "flint": "FlintForCausalLM",
}
FAMILIES = [family for family, name in CLASSES.items() if hasattr(t, name)]  # older transformers have fewer
RECIPES = (
    "snapkv(0.4, recent=6, window=8)", "h2o(0.4, sinks=2, recent=6)", "kvzip(0.5)", "razor(0.5)", "int8", "balanced",
    "kivi(window=8, group=16)", "quest(16, skip_layers=0, size=8)", "exact_topk(16, sinks=2, recent=4)",
    "a_shape(4, window=32)", "vertical_slash(8, slashes=16, first=2, nearest=4)",
    "a_shape(4, window=32) | snapkv(0.4, recent=6, window=8) | ada | int8 | exact_topk(16, sinks=2, recent=4)",
)  # fmt: skip


def build(family: str) -> t.PreTrainedModel:
    """A small random model whose sinks get a share that shows."""
    torch.manual_seed(0)
    model = MAKERS[family]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.copy_(torch.linspace(-1.0, 4.0, len(weight)))
            elif weight.dim() > 1:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pieces", [(70, 1, 1), (30, 25, 15, 3, 1)])
def test_logits_are_those_of_its_own_attention(family: str, pieces: tuple[int, ...]) -> None:
    """A prompt in one and in several pieces, past the window, drafts and single tokens."""
    model = build(family)
    parts = list(ids_of(sum(pieces)).split(pieces, dim=1))
    model.set_attn_implementation("eager")
    expected = logits(model, t.DynamicCache(config=model.config), parts)
    cache = headwise.Cache(model, "")
    assert any(layer.sinks for layer in cache.seam.geometry.layers)
    torch.testing.assert_close(logits(model, cache, parts), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_writes_the_same_tokens(family: str) -> None:
    model, ids = build(family), ids_of(61, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    model.set_attn_implementation("eager")
    expected = greedy(model, ids, attention_mask=mask)
    found = greedy(model, ids, attention_mask=mask, past_key_values=headwise.Cache(model, ""))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_headwise_cache_it_works_as_before(family: str) -> None:
    model, ids = build(family), ids_of(40)
    model.set_attn_implementation("eager")
    expected = model(ids).logits
    headwise.attach(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sentence", RECIPES)
@pytest.mark.parametrize("family", ["gpt_oss"])
def test_recipes_are_followed(family: str, sentence: str, tmp_path: Path) -> None:
    """A prompt in pieces, tokens, a saved conversation; what covers everything is near the model's own."""
    model, ids = build(family), ids_of(90)
    cache = headwise.Cache(model, sentence)
    with torch.no_grad():
        prefill(model, cache, ids, chunk=45)
    cache.save(tmp_path / "a.session")
    written = greedy(model, torch.cat((ids, ids[:, :1]), 1), past_key_values=cache)
    again = headwise.Cache.load(model, sentence, tmp_path / "a.session")
    assert torch.equal(greedy(model, torch.cat((ids, ids[:, :1]), 1), past_key_values=again), written)
    assert written.shape[1] == 91 + 24


def test_lost_mass_is_what_evicted_tokens_had_beside_the_sinks() -> None:
    """With sinks that get nearly everything nearly nothing is lost, whatever is evicted."""
    lost = []
    for sink in (-40.0, 40.0):
        model = build("gpt_oss")
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.data.fill_(sink)
        cache = headwise.Cache(model, "random(0.3)")
        with torch.no_grad():
            prefill(model, cache, ids_of(90))
        assert cache.session is not None
        lost.append(max(max(row) for row in cache.session.ledger.lost_mass(cache.session.plan.geometry.kv_heads)))
    assert lost[0] > 0.3 and lost[1] < 0.1


def test_other_sinks_than_at_attach_are_refused() -> None:
    model = build("gpt_oss")
    cache = headwise.Cache(model, "")
    attention = model.model.layers[1].self_attn
    del attention.sinks
    attention.sinks = None
    with torch.no_grad(), pytest.raises(SessionError, match="layer 1 was given no sink logits"):
        logits(model, cache, [ids_of(20)])


def test_compiled_layers_leave_them_alone() -> None:
    """`headwise.fast` takes no layer that sinks join, and says why."""
    if "granite_swa" not in FAMILIES:
        pytest.skip("this transformers has no dense model with sinks")
    model = build("granite_swa")
    expected = greedy(model, ids_of(40), past_key_values=headwise.Cache(model, ""))
    done = headwise.fast(model)
    assert done.compiled == 0 and done.reasons == {"weights that are not known: sinks": 3}
    assert torch.equal(greedy(model, ids_of(40), past_key_values=headwise.Cache(model, "")), expected)
