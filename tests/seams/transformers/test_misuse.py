"""What users do to a model and a cache between calls: masks that change, copies, threads, dtypes, wrappers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PreTrainedModel

import headwise
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers.forward import cache_argument, forward
from tests.engine.small import build, tokens


@torch.no_grad()
@pytest.mark.parametrize("changed", ["hidden", "shown", "left out"])
def test_a_mask_that_changes_for_tokens_that_came_before_is_refused(changed: str) -> None:
    model, padded = build(), torch.ones(2, 20, dtype=torch.int64)
    padded[0, :6] = 0
    first = torch.ones_like(padded) if changed == "hidden" else padded
    earlier = padded if changed == "hidden" else torch.ones_like(padded)
    later = None if changed == "left out" else torch.cat([earlier, torch.ones(2, 5, dtype=torch.int64)], 1)
    cache, twin = headwise.Cache(model), headwise.Cache(model)
    for one in (cache, twin):
        forward(model, one, tokens(20, rows=2), attention_mask=first)
    with pytest.raises(SessionError, match=r"attention_mask leaves \d+ of the 20 tokens .* row 0.*came with"):
        forward(model, cache, tokens(5, rows=2), attention_mask=later)
    right = torch.cat([first, torch.ones(2, 5, dtype=torch.int64)], 1)
    found, expected = (forward(model, one, tokens(5, rows=2), attention_mask=right).logits for one in (cache, twin))
    assert torch.equal(found, expected)  # refused before anything was begun


def test_a_model_of_another_dtype_is_refused_before_the_step() -> None:
    model = build()
    cache = headwise.Cache(model)
    with torch.no_grad():
        forward(model, cache, tokens(20))
        with pytest.raises(SessionError, match="holds float32, the model gives bfloat16"):
            forward(model.to(torch.bfloat16), cache, tokens(3))
        forward(model.float(), cache, tokens(3))
    assert cache.get_seq_length() == 23


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_attached_model_is_attached_once_and_detached_whole(
    copied: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    model = build()
    before = model.config._attn_implementation
    seam = headwise.attach(model)
    other = copied(model)
    assert headwise.attach(other).fingerprint == seam.fingerprint
    assert len(other._forward_pre_hooks) == len(other._forward_hooks) == 1
    headwise.detach(other)
    assert other.config._attn_implementation == before
    assert not other._forward_pre_hooks
    assert not other._forward_hooks
    assert model.config._attn_implementation == "headwise"
    assert len(model._forward_pre_hooks) == 1


def test_threads_that_attach_one_model_at_once_attach_it_once() -> None:
    model = build()
    with ThreadPoolExecutor(4) as pool:
        seams = list(pool.map(lambda _: headwise.attach(model), range(4)))
    assert all(seam is seams[0] for seam in seams)
    assert len(model._forward_pre_hooks) == 1


def test_gradient_checkpointing_in_training_which_drops_the_cache_is_refused() -> None:
    model = build()
    cache = headwise.Cache(model)
    model.gradient_checkpointing_enable()
    with pytest.raises(SessionError, match=r"gradient checkpointing drops the cache.*model.eval\(\)"):
        forward(model.train(), cache, tokens(20))
    with torch.no_grad():
        forward(model.eval(), cache, tokens(20))
    assert cache.get_seq_length() == 20


class Wrapper(torch.nn.Module):
    """As PEFT does it: what it has not is asked of the model inside, `generate` too."""

    def __init__(self, inside: PreTrainedModel) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.inside(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)


def test_a_wrapper_past_which_generate_goes_is_refused_and_its_model_is_served() -> None:
    wrapped = Wrapper(build())
    with pytest.raises(UnsupportedModel, match=r"Wrapper is not a transformers model but wraps one.*get_base_model"):
        headwise.Cache(wrapped)  # type: ignore[arg-type]
    cache = headwise.Cache(wrapped.inside)
    with torch.no_grad():
        wrapped(input_ids=tokens(20), **{cache_argument(type(wrapped.inside)): cache})
    cache.abort()  # the forward succeeded
    assert cache.get_seq_length() == 20
