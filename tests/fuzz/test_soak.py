"""Fifty sessions end in the files they began with, and in about the memory; `make soak` holds a thousand to 1 %."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.soak import Held

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="until the system tells a process's memory in /proc")
def test_fifty_sessions_leave_nothing() -> None:
    words = [sys.executable, "-m", "tests.fuzz.soak", "--sessions", "50", "--warm-up", "150"]
    told = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=dict(os.environ))
    assert told.returncode == 0, told.stdout + told.stderr
    assert "+0 open files, +0 files left: nothing grew" in told.stdout


def test_what_grew_is_told() -> None:
    start = Held(1000, 5, 0)
    assert Held(1009, 5, 0).grown(start) == ""
    assert "memory grew from 1000 to 1011" in Held(1011, 5, 0).grown(start)
    assert Held(1000, 7, 3).grown(start) == "2 more files are open; 3 files are left"
