"""Models without their weights: what a forward of them would hand over is known of layers that differ, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

import headwise
from headwise.cost.meta_model import MetaModel
from tests.seams.transformers.unlike import gemma4, llama


@pytest.mark.parametrize("build", [llama, gemma4])
def test_layers_that_differ_are_known_before_anything_is_loaded(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    with torch.device("meta"):
        empty = type(model)(model.config)
    meta = MetaModel(empty)
    assert meta.geometry == headwise.attach(model).geometry
    assert meta.work(16).attending > 0
