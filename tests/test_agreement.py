"""The eviction methods keep the tokens that NVIDIA's kvpress keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_kvpress_keeps_the_same_tokens() -> None:
    pytest.importorskip("kvpress", reason="until kvpress is installed, and the transformers it needs")
    found = subprocess.run(
        [sys.executable, "benchmarks/agreement.py", "--context", "600"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "| SnapKV |" in found.stdout
