"""Errors anywhere in a model's forward: `Cache.abort`, and `drive.prefill` by itself, give back what was before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import LlamaForCausalLM

import headwise
from headwise.seams.transformers.drive import prefill
from tests.engine.small import build, tokens
from tests.fuzz.state import differences, state

RECIPES = ["", "streaming(40)", "h2o(40) | int8", "snapkv(40) | kivi(window=8, group=16)", "razor(40, sinks=2)"]


class Planted(Exception):
    """The error that a test plants."""


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build()


@contextmanager
def failing(module: torch.nn.Module) -> Iterator[None]:
    """A forward that fails when it comes to `module`."""

    def fail(*args: object) -> None:
        raise Planted

    hook = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def places(model: LlamaForCausalLM) -> list[torch.nn.Module]:
    """Where a forward may fail: before any layer, between layers, after the last one's attention, in the head."""
    whole, layers = model.model, model.model.layers
    return [whole.embed_tokens, layers[0].mlp, layers[1].self_attn, layers[-1].mlp, whole.norm, model.lm_head]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("count", [50, 1])
def test_an_error_anywhere_in_a_forward_is_taken_back(model: LlamaForCausalLM, recipe: str, count: int) -> None:
    cache = headwise.Cache(model, recipe)
    with torch.no_grad():
        model(tokens(100), past_key_values=cache)
        before = state(cache.session)
        expected = model(tokens(count, 1), past_key_values=cache.fork()).logits
        for place in places(model):
            with failing(place), pytest.raises(Planted):
                model(tokens(count, 1), past_key_values=cache)
            cache.abort()
            assert not differences(before, state(cache.session))
        assert torch.equal(model(tokens(count, 1), past_key_values=cache).logits, expected)


def test_after_a_forward_that_succeeded_abort_changes_nothing(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "streaming(40)")
    with torch.no_grad():
        model(tokens(100), past_key_values=cache)
        cache.abort()
        assert cache.get_seq_length() == 100
        with failing(model.model.embed_tokens), pytest.raises(Planted):
            model(tokens(1), past_key_values=cache)  # fails before the cache hears of it
        cache.abort()
    assert cache.get_seq_length() == 100
    assert cache.session.nbytes() == cache.session.cache_bytes()


def test_a_first_forward_that_fails_leaves_an_empty_cache(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "streaming(40)")
    with failing(model.lm_head), pytest.raises(Planted):
        model(tokens(100), past_key_values=cache)
    cache.abort()
    assert cache.session is None
    with torch.no_grad():
        model(tokens(30, rows=2), past_key_values=cache)  # any number of rows again
    assert cache.get_seq_length() == 30


@pytest.mark.parametrize("before", [0, 60])
def test_a_prefill_that_fails_goes_back_by_itself(model: LlamaForCausalLM, before: int) -> None:
    cache = headwise.Cache(model, "snapkv(40)")
    if before:
        prefill(model, cache, tokens(before))
    pieces = 0

    def fail(*args: object) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            raise KeyboardInterrupt

    twin = cache.fork()
    hook = model.model.norm.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        prefill(model, cache, tokens(120, 1), chunk=60)
    hook.remove()
    assert cache.total is None
    if not before:
        assert cache.session is None
        return
    twin.total = before + 120
    with torch.no_grad():
        model(tokens(120, 1)[:, :60], past_key_values=twin)
    assert not differences(state(twin.session), state(cache.session))


def test_a_callback_that_fails_after_a_piece_takes_nothing_back(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "snapkv(40)")
    prefill(model, cache, tokens(60))

    def fail(done: int, of: int) -> None:
        raise Planted

    with pytest.raises(Planted):
        prefill(model, cache, tokens(120, 1), chunk=60, progress=fail)
    assert cache.get_seq_length() == 120
