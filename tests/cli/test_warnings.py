"""The run job calls transformers in the newest form that it knows."""

from __future__ import annotations

import warnings
from pathlib import Path

from .conftest import Command


def test_a_whole_run_warns_of_nothing(headwise: Command, tiny: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        ran = headwise("run", tiny, "--context", "600", "--facts", "2", "--json")
    assert ran.exit_code == 0, ran.output
