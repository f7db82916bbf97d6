"""The tiny model as a folder, and the commands run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from headwise.bench.cells import pool
from headwise.cli.main import app
from headwise.cost import fit
from headwise.seams.transformers import load as load_module
from tests.tiny import build

Command = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def headwise(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`headwise("run", model, ...)`: the command's result, its output as wide as it likes."""
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error, wherever it is done."""

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for module in (fit, pool, load_module):  # imported before, or one of them would keep the error for good
        monkeypatch.setattr(module, "load_model", load)
