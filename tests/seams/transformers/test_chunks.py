"""Llama 4: layers within chunks, layers that rotate nothing, scores that grow with the length; as its own attention."""

from __future__ import annotations

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers.drive import prefill
from tests.seams.transformers.pieces import ids_of, logits
from tests.seams.transformers.test_models import SMALL, greedy

CHUNK = 24
OWN = dict(head_dim=16, attention_chunk_size=CHUNK, intermediate_size_mlp=96, num_local_experts=2)


def build(floor_scale: int = 16) -> t.PreTrainedModel:
    """Three layers within chunks and one that sees everything, rotates nothing and scales its scores by position."""
    torch.manual_seed(0)
    model = t.Llama4ForCausalLM(
        t.Llama4TextConfig(**SMALL | OWN | {"num_hidden_layers": 4, "floor_scale": floor_scale})
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("pieces", [(71, 1, 1, 1), (30, 25, 15, 4, 1), (20, 4, 1, 1)])
def test_logits_are_those_of_its_own_attention(pieces: tuple[int, ...]) -> None:
    """A prompt in one and several pieces, and steps across the ends of chunks."""
    model, parts = build(), list(ids_of(sum(pieces)).split(pieces, dim=1))
    model.set_attn_implementation("eager")
    expected = logits(model, t.DynamicCache(), parts)
    cache = headwise.Cache(model, "")
    assert [layer.chunked for layer in cache.seam.geometry.layers] == [True, True, True, False]
    assert cache.seam.ropes is not None and [rope is None for rope in cache.seam.ropes] == [False] * 3 + [True]
    torch.testing.assert_close(logits(model, cache, parts), expected, atol=2e-4, rtol=2e-4)


def test_a_padded_batch_writes_the_same_tokens() -> None:
    model, ids = build(), ids_of(61, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    model.set_attn_implementation("eager")
    expected = greedy(model, ids, attention_mask=mask)
    found = greedy(model, ids, attention_mask=mask, past_key_values=headwise.Cache(model, ""))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "sentence",
    ["snapkv(0.4, recent=6, window=8)", "h2o(0.4, sinks=2, recent=6) | int8", "quest(16, skip_layers=0, size=8)"],
)
def test_recipes_are_followed_and_chunks_hold_no_more_than_one(sentence: str) -> None:
    model, ids = build(), ids_of(90)
    cache = headwise.Cache(model, sentence)
    with torch.no_grad():
        prefill(model, cache, ids, chunk=45)
    assert cache.session is not None and int(cache.session.lengths(0).max()) == CHUNK
    assert greedy(model, torch.cat((ids, ids[:, :1]), 1), past_key_values=cache).shape[1] == 91 + 24
    with pytest.raises(SessionError, match="cannot be taken back exactly"):
        cache.activate_past_recording()


def test_chunks_and_windows_of_one_size_are_refused() -> None:
    model = build()
    model.config.sliding_window = CHUNK
    with pytest.raises(UnsupportedModel, match="by which a mask does not tell them apart"):
        headwise.Cache(model, "")
