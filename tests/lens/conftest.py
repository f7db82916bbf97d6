"""A tiny model to look into, and a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.calibrate.subject import ModelSubject
from headwise.lens import Text
from tests import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("lens"))


@pytest.fixture
def subject(folder: Path) -> ModelSubject:
    return ModelSubject(AutoModelForCausalLM.from_pretrained(folder).eval())


@pytest.fixture
def text() -> Text:
    generator = torch.Generator().manual_seed(0)
    return Text(torch.randint(2, 512, (1, 101), generator=generator), torch.rand(101, generator=generator) < 0.2)
