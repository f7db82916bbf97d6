"""Every example runs: on the tiny model always, on the embedded one as a reader would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import build

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(*command: object) -> None:
    found = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=600
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_on_the_tiny_model(example: Path, tiny: Path) -> None:
    run(example, tiny)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_on_the_embedded_model(example: Path) -> None:
    run(example)
