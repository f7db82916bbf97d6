"""A tiny model whose decoder layers are compiled, shared by all tests of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from headwise.compiled.fast import fast
from headwise.seams.transformers.load import load_model, load_tokenizer
from headwise.serve.rows import Rows, steady_rows
from tests.tiny import build


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def model(place: Path) -> PreTrainedModel:
    made = load_model(place)
    fast(made)
    return made


@pytest.fixture(scope="session")
def tokenizer(place: Path) -> Any:
    return load_tokenizer(place)


@pytest.fixture(scope="session")
def rows(model: PreTrainedModel) -> Rows:
    return steady_rows(model)
