"""Steering as users meet it: plain generate, padded batches, and the same as an edited mask of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaForCausalLM

import headwise
from headwise.errors import SessionError
from headwise.shapes import Mark
from tests.engine.small import build, tokens
from tests.seams.transformers.test_cache import greedy

MARKS = (Mark("emphasis", 10, 17), Mark("emphasis", 30, 32))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build()


def masked(model: LlamaForCausalLM, ids: torch.Tensor, alpha: float) -> torch.Tensor:
    """Logits under a mask that takes -log alpha off all tokens outside the marks, as the released code of PASTA does
    to a prompt."""
    n = ids.shape[1]
    outside = torch.ones(n, dtype=torch.bool)
    for mark in MARKS:
        outside[mark.start : mark.end] = False
    mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1) + outside * math.log(alpha)
    model.set_attn_implementation("eager")
    try:
        return model(ids, attention_mask=mask[None, None]).logits
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("pieces", [(48,), (20, 28), (44, 1, 1, 2)])
def test_emphasis_equals_an_edited_mask(model: LlamaForCausalLM, pieces: tuple[int, ...]) -> None:
    ids = tokens(48)
    right = masked(model, ids, 0.05)
    cache = headwise.Cache(model, "pasta(0.05)", marks=MARKS)
    with cache.prompt(48):
        found = [model(piece, past_key_values=cache).logits for piece in ids.split(list(pieces), 1)]
    torch.testing.assert_close(torch.cat(found, 1), right, rtol=1e-4, atol=1e-4)
    assert (right - model(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("recipe", ["pasta", "int8 | paint(kind='emphasis')", "snapkv(0.5, recent=4, window=4) | act"])
def test_a_padded_batch_writes_what_its_rows_write_alone(model: LlamaForCausalLM, recipe: str) -> None:
    long, short = tokens(60), tokens(40, seed=3)
    marks = [*MARKS, *(Mark(one.kind, one.start, one.end, 1) for one in MARKS)]
    padded = torch.cat((torch.zeros(1, 20, dtype=torch.int64), short), 1)
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[1, :20] = 0
    cache = headwise.Cache(model, recipe, marks=marks)
    both = greedy(model, torch.cat((long, padded)), attention_mask=mask, past_key_values=cache)
    alone = [greedy(model, ids, past_key_values=headwise.Cache(model, recipe, marks=MARKS)) for ids in (long, short)]
    assert torch.equal(both[0], alone[0][0]) and torch.equal(both[1, 20:], alone[1][0])


def test_it_is_refused_where_nothing_is_marked(model: LlamaForCausalLM) -> None:
    with pytest.raises(SessionError, match="nothing is; give the cache marks="):
        headwise.Cache(model, "snapkv(0.5) | pasta")


def test_a_failed_prompt_leaves_the_cache_as_it_was(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "pasta", marks=[Mark("emphasis", 30, 60)])
    with pytest.raises(SessionError, match="ends beyond the 48 tokens"):
        model(tokens(48), past_key_values=cache)
    assert cache.get_seq_length() == 0
    model(tokens(64), past_key_values=cache)
    assert cache.get_seq_length() == 64
