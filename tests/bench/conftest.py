"""The tiny model, loaded; and nobody who watches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headwise.seams.transformers.load import load_model, load_tokenizer
from tests.tiny import build


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(model, tokenizer)."""
    torch.set_num_threads(1)
    folder = build(tmp_path_factory.mktemp("tiny"))
    return load_model(folder), load_tokenizer(folder)


def quiet(what: str, done: int, total: int) -> None:
    """Watch nothing."""
