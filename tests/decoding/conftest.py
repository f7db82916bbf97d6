"""Drafts stay on in these tests, however slow the machine makes them: what switches them off is tested by itself."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def drafts_stay_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwise.decoding.pace.WINDOW", 10_000)
