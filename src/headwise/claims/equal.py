"""Controls that cost what the method costs: the number left open in their sentences is found by bisection."""

from __future__ import annotations

from collections.abc import Callable

from headwise.claims.claim import FITTED
from headwise.errors import RecipeError

STEPS = 9  # a share is found to one part in 500
SLACK = 0.02  # of the method's cost, that a control may lack


def is_open(sentence: str) -> bool:
    """Whether a number of the sentence is to be found."""
    return any(place in sentence for place in FITTED)


def fitted(sentence: str, target: float, cost: Callable[[str], float]) -> str:
    """The sentence with the least number whose `cost`, which rises with it, is at least `target`; RecipeError where
    even the largest costs less."""
    if "{count}" in sentence:
        return _fitted(sentence, "{count}", target, cost, [str(2**i) for i in range(13)])
    return _fitted(sentence, "{share}", target, cost, ["0.01", "1.0"])


def _fitted(sentence: str, place: str, target: float, cost: Callable[[str], float], tried: list[str]) -> str:
    low, high = tried[0], tried[-1]
    enough = target * (1 - SLACK)
    if cost(sentence.replace(place, high)) < enough:
        raise RecipeError(f"'{sentence}' costs less than {target:.4f} of dense attention whatever its number")
    if cost(sentence.replace(place, low)) >= enough:
        return sentence.replace(place, low)
    for _ in range(STEPS + 3 * (place == "{count}")):
        middle = _between(low, high, place)
        if middle in (low, high):
            break
        if cost(sentence.replace(place, middle)) >= enough:
            high = middle
        else:
            low = middle
    return sentence.replace(place, high)


def _between(low: str, high: str, place: str) -> str:
    if place == "{count}":
        return str((int(low) + int(high)) // 2)
    return f"{(float(low) + float(high)) / 2:.4f}"
