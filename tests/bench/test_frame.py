"""Bytes before any work: what a plan will hold, and the budget that a number of bytes allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import headwise
from headwise.assets import novel
from headwise.bench.job import encode
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.errors import RecipeError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.seams.transformers.drive import prefill
from headwise.shapes import format_bytes

Loaded = tuple[Any, Any]


@pytest.mark.parametrize(
    "recipe",
    ["dense", "snapkv(0.3)", "expected_attention(100) | int8", "h2o(0.5)", "l2norm(0.2)", "streaming(64) | pyramid",
     "quest(32)", "snapkv(0.3) | ada"],
)  # fmt: skip
def test_bytes_are_foretold(loaded: Loaded, recipe: str) -> None:
    model, tokenizer = loaded
    cache = headwise.Cache(model, recipe)
    ids = encode(tokenizer, novel()[:1500], start=True)
    prefill(model, cache, ids, 150)
    foretold = predicted_bytes(cache.plan, ids.shape[1], model.dtype)
    assert cache.session.predicted_bytes() == foretold
    assert cache.nbytes <= 1.1 * foretold
    if "ada" not in recipe:  # heads of uneven counts fill their last pages differently
        assert cache.nbytes == foretold


def test_a_window_bounds_what_is_foretold() -> None:
    shape = Geometry.uniform(4, 2, 16, 16, (None, 32), 4096)
    full = Geometry.uniform(4, 2, 16, 16, (None,), 4096)
    both, one = (predicted_bytes(Plan.uniform(g, ""), 1600, torch.float32) for g in (shape, full))
    assert both - one == 2 * 32 * (2 * 16 * 4 + 4)


def test_fitting_uses_the_budget_and_no_more() -> None:
    shape = Geometry.uniform(8, 4, 32, 32, (None,) * 4, 16_384)
    target = shape.dense_bytes(8192, torch.bfloat16) // 4
    recipe = fitted(Plan.uniform(shape, "snapkv | int8"), target, 8192, torch.bfloat16)
    held = predicted_bytes(Plan.uniform(shape, recipe), 8192, torch.bfloat16)
    assert 0.99 * target < held <= target
    with pytest.raises(RecipeError, match="give --memory"):
        fitted(Plan.uniform(shape, "snapkv"), 1000, 8192, torch.bfloat16)


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1024, "1.0 KiB"), (3 * 2**20 // 2, "1.5 MiB"), (2**31, "2.0 GiB")]
)
def test_bytes_as_text(count: int, text: str) -> None:
    assert format_bytes(count) == text
