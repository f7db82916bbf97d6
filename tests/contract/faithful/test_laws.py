"""Every law on every registered decoder, over a dense cache, and over evicted and quantised ones."""

from __future__ import annotations

import pytest

from headwise.decoders import DECODERS
from tests.contract.faithful.cases import CACHES, neutral, sentence, small_detector  # noqa: F401
from tests.contract.faithful.laws import LAWS


@pytest.mark.parametrize("recipe", CACHES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", DECODERS.all())
def test_law(name: str, law: str, recipe: str) -> None:
    LAWS[law](sentence(name), neutral(name), recipe)
