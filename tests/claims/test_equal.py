"""Numbers left open are found, in few tries, such that they cost what the method costs."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from headwise.claims.equal import SLACK, fitted
from headwise.errors import RecipeError


class Tried:
    """A cost that counts how often it is asked for."""

    def __init__(self, of: Callable[[float], float]) -> None:
        self.of, self.times = of, 0

    def __call__(self, sentence: str) -> float:
        self.times += 1
        return self.of(float(re.findall(r"[\d.]+", sentence)[-1]))


@pytest.mark.parametrize("target", [0.02, 0.3, 0.97])
@pytest.mark.parametrize("curve", [1.0, 0.9, 2.0])
def test_a_share_is_fitted_to_the_cost(target: float, curve: float) -> None:
    tried = Tried(lambda share: share**curve)
    found = fitted("random({share})", target, tried)
    assert abs(tried(found) / target - 1) <= SLACK
    assert tried.times <= 10


@pytest.mark.parametrize("target", [0.02, 0.5, 0.9])
def test_a_count_is_fitted_to_the_cost(target: float) -> None:
    tried = Tried(lambda count: min(1.0, count / 1000))
    found = fitted("a_shape(1, window={count})", target, tried)
    assert abs(tried(found) / target - 1) <= SLACK
    assert tried.times <= 12


def test_of_numbers_that_jump_over_the_cost_the_upper_is_taken() -> None:
    assert fitted("block_sparse(blocks={count})", 0.35, lambda one: int(one[20:-1]) / 10) == "block_sparse(blocks=4)"


def test_what_always_costs_enough_gets_the_least_number() -> None:
    assert fitted("random({share})", 0.3, lambda sentence: 1.0) == "random(0.01)"


def test_a_control_that_cannot_cost_as_much_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"costs less than 0\.3000"):
        fitted("random({share})", 0.3, lambda sentence: 0.1)


def test_numbers_too_small_for_the_method_are_passed_over() -> None:
    def cost(sentence: str) -> float:
        if (count := int(sentence[4:-1])) < 8:
            raise RecipeError("too few")
        return min(1.0, count / 100)

    assert abs(cost(fitted("hip({count})", 0.3, cost)) / 0.3 - 1) <= SLACK
