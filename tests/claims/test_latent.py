"""On a trained model of latent attention a fact survives what looks for it, and dies where tokens stay at random."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

import headwise
from tests.claims.lookup import TRAINED, VOCAB, draw, trained

ASKED = 64


@lru_cache(maxsize=1)
def latent_model() -> PreTrainedModel:
    """Two layers of two query heads over latents of 32 channels, trained to look facts up; seconds of one core."""
    torch.manual_seed(1)
    return trained(
        DeepseekV3ForCausalLM(
            DeepseekV3Config(
                vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=16, qk_nope_head_dim=32,
                v_head_dim=32, head_dim=16, first_k_dense_replace=2, max_position_embeddings=2 * TRAINED,
                tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 300.0},
                bos_token_id=None, eos_token_id=None,
            )
        )
    )  # fmt: skip


@lru_cache(maxsize=16)
def answered(recipe: str) -> torch.Tensor:
    """Which of ASKED questions are answered: each stands at the end of its text, and is asked again after it was read,
    so that a method has seen it before it evicts."""
    model, texts = latent_model(), draw(torch.Generator().manual_seed(7), ASKED, TRAINED - 2)
    cache = headwise.Cache(model, recipe)
    with torch.no_grad():
        model(torch.cat((texts.ids, texts.question), 1), past_key_values=cache)
        logits = model(texts.question, past_key_values=cache).logits
    return logits[:, -1].argmax(-1) == texts.answer


@pytest.mark.parametrize(
    ("recipe", "control"),
    [
        ("snapkv(0.1, sinks=0, recent=1, window=1)", "random(0.1, sinks=0, recent=1)"),
        ("snapkv(0.1, sinks=0, recent=1, window=1) | int8", "streaming(0.1, sinks=0, recent=1)"),
        ("exact_topk(0.1, sinks=0, recent=1)", "random_read(0.1, sinks=0, recent=1)"),
    ],
)
def test_the_needle_survives_a_plan_and_dies_at_random(recipe: str, control: str) -> None:
    dense, held, lost = (answered(one).double() for one in ("", recipe, control))
    assert dense.mean() >= 0.95
    margin = held - lost
    assert held.mean() >= 0.85 * dense.mean()
    assert margin.mean() - 1.96 * margin.std() / ASKED**0.5 > 0.3
