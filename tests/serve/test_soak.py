"""The soak of the server, in short; `make soak` runs it long."""

from __future__ import annotations

import pytest

for package in ("httpx", "fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from tests.serve.soak import KINDS, soak  # noqa: E402


def test_mixed_requests_are_answered_as_if_alone_and_leave_nothing() -> None:
    found, wrong = soak(40, 0)
    assert not wrong and set(found) == set(KINDS) and sum(found.values()) == 40
