"""What steering and decoders are wrongly given: each is refused before work starts, by the value and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import headwise
from headwise.errors import HeadwiseError, PlanError, RecipeError, SessionError
from headwise.seams.transformers.forward import cache_argument
from tests.contract.faithful.cases import model, sentence, text
from tests.seams.transformers.seeing import seeing

Made = Callable[[], Any]


def marked(kind: str, end: int = 12) -> list[headwise.Mark]:
    return [headwise.Mark(kind, 3, end)]


def generated(own: Any, cache: Any, **how: Any) -> Any:
    return own.generate(text(), max_new_tokens=2, do_sample=False, **{cache_argument(type(own)): cache}, **how)


def test_a_mark_outside_the_prompt() -> None:
    own, ids = model(), text()
    cache = headwise.Cache(own, "pasta(0.5)", marks=marked("emphasis", 41))
    with pytest.raises(SessionError, match=rf"end=41.*ends beyond the {ids.shape[1]} tokens of its prompt.*of_text"):
        generated(own, cache)
    cache = headwise.Cache(own, "", marks=marked("context", 41))
    with pytest.raises(SessionError, match=r"end=41.*beyond the 40 tokens"):
        own.generate(ids, max_new_tokens=2, custom_generate=headwise.contrast(own, cache, "cad"))


def test_heads_that_the_model_has_not() -> None:
    own = model()
    with pytest.raises(PlanError, match=r"'pasta' steers layer 9, but the model's are 0 to 2"):
        headwise.Cache(own, "pasta(0.5, heads='9')", marks=marked("emphasis"))
    with pytest.raises(PlanError, match=r"head 8 of layer 1"):
        headwise.Cache(own, "pasta(0.5, heads='1.8')", marks=marked("emphasis"))
    with pytest.raises(HeadwiseError, match=r"head 9\.0: the model has layers 0 to 2"):
        headwise.contrast(own, headwise.Cache(own, ""), "decore(named='9.0')")


def test_an_image_in_a_model_of_text() -> None:
    own = model()
    with pytest.raises(SessionError, match=r"'paint' steers what is marked as 'image', but nothing is; give the cache"):
        headwise.Cache(own, "paint(0.9)")
    with pytest.raises(SessionError, match=r"the prompt holds no image token"):
        other = seeing()
        other.generate(text(), max_new_tokens=2, **{cache_argument(type(other)): headwise.Cache(other, "paint(0.9)")})


STRENGTHS: dict[str, Made] = {
    "pasta: alpha must be less than or equal to 1, got 1.5; the default is 0.01": lambda: headwise.Cache(
        model(), "pasta(1.5)"
    ),
    "act: beta must be less than or equal to 1, got 1.5": lambda: headwise.Cache(model(), "act(1.5)"),
    "paint: alpha must be greater than or equal to 0, got -1": lambda: headwise.Cache(model(), "paint(-1)"),
    "damro: alpha must be greater than or equal to 0, got -1; the default is 0.5": lambda: headwise.contrast(
        model(), headwise.Cache(model(), ""), "damro(alpha=-1)"
    ),
}


@pytest.mark.parametrize("told", STRENGTHS)
def test_strengths_out_of_range(told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        STRENGTHS[told]()


@pytest.mark.parametrize("cache", [DynamicCache(), None])
def test_a_cache_that_cannot_be_looked_at_again(cache: Any) -> None:
    with pytest.raises(SessionError, match=rf"is a {type(cache).__name__}, which cannot be looked at a second time"):
        headwise.contrast(model(), cache, sentence("decore"))
    own = model()
    with pytest.raises(SessionError, match=r"'magicpig' reads a selection.*leave the select part out"):
        headwise.contrast(own, headwise.Cache(own, "magicpig"), sentence("decore"))
    with pytest.raises(SessionError, match=r"steers what is read.*leave the steer part out"):
        headwise.contrast(own, headwise.Cache(own, "act"), sentence("decore"))


def test_nothing_was_read_before_a_refusal() -> None:
    own = model()
    cache = headwise.Cache(own, "pasta(0.5)", marks=marked("emphasis", 41))
    with pytest.raises(SessionError):
        generated(own, cache)
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        whole = generated(own, headwise.Cache(own, "pasta(0.5)", marks=marked("emphasis")))
    assert whole.shape == (1, 42)
