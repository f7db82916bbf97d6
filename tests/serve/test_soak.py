"""The soak of the server, in short; `make soak` runs it long."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("httpx", "fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from tests.serve.killed import killed  # noqa: E402
from tests.serve.soak import KINDS, soak  # noqa: E402


def test_mixed_requests_are_answered_as_if_alone_and_leave_nothing() -> None:
    found, wrong = soak(40, 0)
    assert not wrong and set(found) == set(KINDS) and sum(found.values()) == 40


def test_a_server_that_is_killed_starts_again_and_believes_nothing_damaged(tmp_path: Path) -> None:
    known, wrong = killed(1, tmp_path)
    assert not wrong and known > 0
