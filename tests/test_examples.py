"""Every example runs: on the tiny model always, on the embedded one as a reader would."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from runpy import run_path

import pytest

from tests.tiny import build

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(example: Path, *words: object) -> None:
    """The example as a script, here: a process would import torch first."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(sys, "argv", [str(example), *map(str, words)])
        run_path(str(example), run_name="__main__")
    assert out.getvalue()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_on_the_tiny_model(example: Path, tiny: Path) -> None:
    run(example, tiny)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_on_the_embedded_model(example: Path) -> None:
    run(example)
