"""Changed files whose checksums are right are refused by our errors, or work: a short run of the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.files import run_case

CASES, PART = 600, 60


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_changed_files_are_refused_or_work(first: int, tmp_path: Path) -> None:
    found = [run_case(seed, tmp_path) for seed in range(first, first + PART)]
    assert found.count("refused") > PART // 2
    assert not list(tmp_path.glob("*.part"))
