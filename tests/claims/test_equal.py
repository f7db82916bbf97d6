"""Numbers left open are the least that cost what the method costs."""

from __future__ import annotations

import pytest

from headwise.claims.equal import SLACK, fitted
from headwise.errors import RecipeError


def test_a_share_is_fitted_to_the_cost() -> None:
    found = fitted("random({share})", 0.3, lambda sentence: float(sentence[7:-1]))
    assert 0.3 * (1 - SLACK) <= float(found[7:-1]) <= 0.3 * (1 - SLACK) + 0.003


def test_a_count_is_the_least_that_costs_enough() -> None:
    found = fitted("a_shape(1, window={count})", 0.5, lambda sentence: int(sentence.split("=")[1][:-1]) / 1000)
    assert found == "a_shape(1, window=490)"


def test_what_always_costs_enough_gets_the_least_number() -> None:
    assert fitted("random({share})", 0.3, lambda sentence: 1.0) == "random(0.01)"


def test_a_control_that_cannot_cost_as_much_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"costs less than 0\.3000"):
        fitted("random({share})", 0.3, lambda sentence: 0.1)
