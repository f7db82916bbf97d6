"""Attaching and detaching: what a model does without a headwise cache, what is put back, and what is refused."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers import drive
from headwise.seams.transformers.forward import cache_argument, forward
from tests.engine.small import build, tokens
from tests.seams.transformers.generation import generate

SMALL = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=0,
)  # fmt: skip


def capped() -> t.Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = t.Gemma2Config(**SMALL, head_dim=16, sliding_window=24, attn_logit_softcapping=2.0)
    return t.Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_detach_puts_back_what_was_there(implementation: str) -> None:
    model = build()
    model.set_attn_implementation(implementation)
    expected = model(tokens(30)).logits
    held = headwise.Cache(model, "")
    generate(model, tokens(30), held)
    headwise.detach(model)
    assert model.config._attn_implementation == implementation
    assert not model._forward_pre_hooks
    assert torch.equal(model(tokens(30)).logits, expected)
    with pytest.raises(SessionError, match="set_attn_implementation"):
        generate(model, tokens(43), held)
    headwise.detach(model)  # once more changes nothing
    again = headwise.Cache(model, "")
    generate(model, tokens(30), again)
    assert again.get_seq_length() > 30


def test_detach_puts_back_the_parts_of_a_model_each() -> None:
    vision = t.SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = t.Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=24)
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=100)
    model = t.Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation({"": "eager", "text_config": "eager", "vision_config": "sdpa"})
    headwise.attach(model)
    assert model.config.text_config._attn_implementation == "headwise"
    headwise.detach(model)
    found = (model.config, model.config.text_config, model.config.vision_config)
    assert [one._attn_implementation for one in found] == ["eager", "eager", "sdpa"]


def test_a_model_of_one_layer_is_noticed_too_when_it_was_switched_away() -> None:
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**SMALL | dict(num_hidden_layers=1))).eval()
    held = headwise.Cache(model, "")
    forward(model, held, tokens(20))
    model.set_attn_implementation("sdpa")
    with pytest.raises(SessionError, match="set_attn_implementation"):
        forward(model, held, tokens(1))


@pytest.mark.parametrize("padding", [0, 7])
def test_capped_scores_fall_back_to_the_models_own_attention(padding: int) -> None:
    """Without a headwise cache: a forward, and answers under a DynamicCache, past the window."""
    ids, mask = tokens(40, rows=2), torch.ones(2, 40, dtype=torch.int64)
    mask[0, :padding] = 0
    how = dict(attention_mask=mask, max_new_tokens=8, do_sample=False)
    model = capped()
    model.set_attn_implementation("eager")
    expected = model(ids, attention_mask=mask).logits, model.generate(ids, **how)
    headwise.attach(model)
    found = model(ids, attention_mask=mask).logits, model.generate(ids, **how)
    torch.testing.assert_close(found[0][:, padding:], expected[0][:, padding:], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1], expected[1])


def test_an_image_shown_before_does_not_matter() -> None:
    """Qwen-VL models keep how far an image moved their positions; what is looked at is plain text."""
    sections = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    text = {**SMALL, "rope_scaling": sections, "rope_parameters": sections}
    vision = dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2)
    config = t.Qwen2VLConfig(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = t.Qwen2VLForConditionalGeneration(config).eval()
    model.model.rope_deltas = torch.tensor([[-13]])
    headwise.attach(model)
    assert model.model.rope_deltas.tolist() == [[-13]]


def test_models_that_write_no_tokens_and_compiled_ones_are_refused_by_name() -> None:
    bert = dict(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    for model in (t.LlamaModel(t.LlamaConfig(**SMALL)), t.BertModel(t.BertConfig(**bert))):
        with pytest.raises(UnsupportedModel, match="AutoModelForCausalLM"):
            headwise.attach(model.eval())
    with pytest.raises(UnsupportedModel, match=r"differ|later ones"):
        headwise.attach(t.BertLMHeadModel(t.BertConfig(**bert)).eval())
    with pytest.raises(UnsupportedModel, match="compiled"):
        headwise.Cache(torch.compile(build()), "")


@pytest.mark.parametrize("as_method", [True, False])
def test_a_compiled_model_is_refused_at_once(as_method: bool) -> None:
    model = build()
    held = headwise.Cache(model, "")
    called = model
    if as_method:
        model.compile()
    else:
        called = torch.compile(model)
    start = time.perf_counter()
    with pytest.raises(SessionError, match="compiled"), torch.no_grad():
        called(tokens(30), **{cache_argument(type(model)): held})
    assert time.perf_counter() - start < 30 and held.get_seq_length() == 0


@pytest.mark.skipif(not hasattr(t, "AfmoeForCausalLM"), reason="this transformers has no Afmoe")
def test_outputs_are_contiguous_for_models_that_view_them() -> None:
    torch.manual_seed(0)
    config = t.AfmoeConfig(
        **SMALL, head_dim=16, sliding_window=24, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        num_dense_layers=1, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = t.AfmoeForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    expected = generate(model, tokens(60), None)
    assert torch.equal(generate(model, tokens(60), headwise.Cache(model, "")), expected)


def test_a_config_whose_layers_differ_has_what_it_names() -> None:
    """Asked for one value of what its layers have each, such a config raises."""

    class Layered(t.LlamaConfig):
        @property
        def index_topk(self) -> int:
            raise ValueError("layers differ")

    assert "an indexer" in str(headwise.attach(t.LlamaForCausalLM(Layered(**SMALL)).eval()).by_itself)


def test_no_call_of_ours_warns_of_what_will_be_removed() -> None:
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        held = headwise.Cache(model, "snapkv(0.5)")
        drive.generate(model, held, tokens(50), 4)
        drive.continuation_nll(model, held, tokens(5))
        generate(model, tokens(60), headwise.Cache(model, ""))
        model(tokens(8))


def test_every_call_of_a_model_goes_through_the_one_place_that_knows_the_argument() -> None:
    """No file but `seams/transformers/forward.py` names a model's cache argument."""
    from tests.test_house import FILES, SRC

    naming = [path for path in FILES if "past_key_values=" in path.read_text()]
    assert [path.relative_to(SRC).as_posix() for path in naming] == []
