"""On pretrained models: dense attention under headwise is the model's own, and a model is what it was trained to be."""

from __future__ import annotations

import math

import pytest
import torch

import headwise
from headwise.pretrained import PRETRAINED, SAMPLE
from headwise.seams.transformers.drive import continuation_nll, prefill
from headwise.seams.transformers.forward import cache_argument
from tests.real.conftest import Real

NEW = 24
CAPITAL = {"smollm2": " Paris", "gemma3": " the capital of the country"}  # what they say of "The capital of France is"
PERPLEXITY = 70  # at most, of the 256 tokens after 1,000 of the novel
WINDOWS = {"smollm2": [None] * 30, "gemma3": ([512] * 5 + [None]) * 3}


@pytest.mark.parametrize("tokens", [12, 1000])
def test_greedy_tokens_are_those_of_eager_attention(real: Real, tokens: int) -> None:
    """1,000 tokens are beyond Gemma-3's windows."""
    ids = real.prompt(tokens)
    expected = real.eager(ids, NEW)
    cache = headwise.Cache(real.model)
    assert real.written(ids, NEW, **{cache_argument(type(real.model)): cache}) == expected
    assert cache.get_seq_length() == tokens + NEW - 1


@pytest.mark.parametrize("recipe", ["streaming(1.0)", "snapkv(1.0)", "quest(4096)", "vertical_slash(4096)"])
def test_methods_that_are_given_room_for_everything_change_nothing(real: Real, recipe: str) -> None:
    ids = real.prompt(700)
    expected = real.eager(ids, NEW)
    cache = headwise.Cache(real.model, recipe)
    assert real.written(ids, NEW, **{cache_argument(type(real.model)): cache}) == expected


def test_a_second_turn_goes_on_where_the_first_ended(real: Real) -> None:
    ids = real.prompt(700)
    first, rest = ids[:, :600], ids[:, 600:]
    turn = torch.cat((first, torch.tensor([real.eager(first, NEW)]), rest), 1)
    expected = real.eager(turn, NEW)
    cache = headwise.Cache(real.model)
    how = {cache_argument(type(real.model)): cache}
    real.written(first, NEW, **how)
    assert real.written(turn, NEW, **how) == expected
    assert cache.get_seq_length() == turn.shape[1] + NEW - 1


def test_windows_are_those_of_the_model(real: Real) -> None:
    assert list(headwise.attach(real.model).geometry.windows) == WINDOWS[real.name]


def test_it_reads_text_as_it_was_trained_to(real: Real) -> None:
    """A weight lost or turned around in the conversion, or a wrong tokenizer, costs far more than that."""
    assert tuple(real.tokenizer(SAMPLE).input_ids) == PRETRAINED[real.name].sample_ids
    ids = real.prompt(1256)
    cache = headwise.Cache(real.model)
    prefill(real.model, cache, ids[:, :1000], None)
    total, count = continuation_nll(real.model, cache, ids[:, 1000:])
    assert math.exp(total / count) < PERPLEXITY
    capital = real.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert CAPITAL[real.name] in real.tokenizer.decode(real.eager(capital, 8))
