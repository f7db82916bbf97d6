"""Greedy output under a dense headwise cache is token-identical to transformers' own, family by family."""

from __future__ import annotations

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import UnsupportedModel

SMALL = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
GPT = dict(vocab_size=128, n_embd=64, n_layer=3, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=None)
GEMMA = SMALL | dict(head_dim=16, sliding_window=24, query_pre_attn_scalar=16)
FAMILIES = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
    "mistral_window": lambda: t.MistralForCausalLM(t.MistralConfig(**SMALL, sliding_window=24)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SMALL)),
    "qwen2_mixed": lambda: t.Qwen2ForCausalLM(
        t.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    ),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SMALL, head_dim=16)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**GEMMA)),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**SMALL)),
    "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SMALL, rotary_pct=0.25)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT)),
    "gpt_bigcode_mqa": lambda: t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(**GPT)),
}
ROTATED = {"gpt_neox": 0.25, "gpt2": None, "gpt_bigcode_mqa": None}


def build(family: str) -> t.PreTrainedModel:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for weight in model.parameters():  # larger than the default, so that greedy choices are not near ties
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    return model


def greedy(model: t.PreTrainedModel, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_cache_generates_the_same_tokens(family: str) -> None:
    model = build(family)
    ids = torch.randint(1, 128, (1, 61), generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation("eager")
    expected = greedy(model, ids)
    cache = headwise.Cache(model, "")
    assert torch.equal(greedy(model, ids, past_key_values=cache), expected)
    assert cache.get_seq_length() == 61 + 23


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batch_generates_the_same_tokens(family: str) -> None:
    model = build(family)
    ids = torch.randint(1, 128, (2, 40), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    model.set_attn_implementation("eager")
    expected = greedy(model, ids, attention_mask=mask)
    found = greedy(model, ids, attention_mask=mask, past_key_values=headwise.Cache(model, ""))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_headwise_cache_an_attached_model_works_as_before(family: str) -> None:
    model = build(family)
    ids = torch.randint(1, 128, (1, 40), generator=torch.Generator().manual_seed(3))
    model.set_attn_implementation("eager")
    expected = model(ids).logits
    headwise.attach(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotation_of_keys_is_recognised(family: str) -> None:
    seam = headwise.attach(build(family))
    assert seam.ropes is not None
    width = ROTATED.get(family, 1.0)
    for rope in seam.ropes:
        if width is None:
            assert rope is None
        else:
            assert rope is not None and 2 * rope.frequencies.numel() == int(width * seam.geometry.size("d"))


@pytest.mark.parametrize("family", ["mistral_window", "gemma3"])
def test_sliding_layers_keep_their_window_only(family: str) -> None:
    model = build(family)
    cache = headwise.Cache(model, "snapkv(0.5)")
    ids = torch.randint(1, 128, (1, 100), generator=torch.Generator().manual_seed(4))
    greedy(model, ids, past_key_values=cache)
    assert cache.session is not None
    for layer, window in enumerate(cache.seam.geometry.windows):
        stored = cache.session.lengths(layer)
        assert stored.max() <= (24 + 64 if window == 24 else 50 + 24)


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    falcon = t.FalconForCausalLM(
        t.FalconConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    )
    with pytest.raises(UnsupportedModel, match="ALiBi"):
        headwise.Cache(falcon, "snapkv(0.5)")
