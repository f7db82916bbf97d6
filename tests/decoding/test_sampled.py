"""Sampling with drafts keeps the distribution, and the test would tell if it did not."""

from __future__ import annotations

import pytest

from tests.decoding import sampled

DRAWS = 600


@pytest.mark.parametrize("arm", sampled.KEEP)
def test_the_distribution_stays(arm: str) -> None:
    assert sampled.p_value(sampled.drawn(arm, DRAWS, seed=0)) > 1e-3


@pytest.mark.parametrize("arm", [arm for arm in sampled.ARMS if arm not in sampled.KEEP])
def test_what_changes_it_is_found_out(arm: str) -> None:
    assert sampled.p_value(sampled.drawn(arm, DRAWS, seed=0)) < 1e-3
