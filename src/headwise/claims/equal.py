"""Controls that cost what the method costs: the number left open in their sentences is found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headwise.errors import HeadwiseError, RecipeError

STEPS = 12  # at most
SLACK = 0.02  # of the method's cost, that a control may lack


def fitted(sentence: str, target: float, cost: Callable[[str], float]) -> str:
    """The sentence with a number whose `cost`, which rises with it, is within SLACK of `target`, or the least that was
    found to cost more; RecipeError where even the largest costs less."""
    if "{count}" in sentence:
        return _fitted(sentence, "{count}", target, cost, Ends(0, 12), lambda x: str(round(2**x)))
    return _fitted(sentence, "{share}", target, cost, Ends(0.01, 1.0), lambda x: str(round(x, 4)))


@dataclass
class Ends:
    """Numbers between which the one lies that is looked for, of counts their binary logarithms; and what they cost."""

    low: float
    high: float
    low_cost: float = 0.0
    high_cost: float = 0.0

    def between(self, target: float, step: int) -> float:
        """Where a line between the ends reaches the target; every third time the middle, as cost is no line."""
        if step % 3 == 2 or self.high_cost <= self.low_cost:
            return (self.low + self.high) / 2
        along = (target - self.low_cost) / (self.high_cost - self.low_cost)
        return self.low + min(max(along, 0.05), 0.95) * (self.high - self.low)


def _fitted(
    sentence: str, place: str, target: float, cost: Callable[[str], float], ends: Ends, written: Callable[[float], str]
) -> str:
    def at(number: float) -> str:
        return sentence.replace(place, written(number))

    def tried(number: float) -> float:
        try:
            return cost(at(number))
        except HeadwiseError:  # too small a number for the method
            return 0.0

    least, most = target * (1 - SLACK), target * (1 + SLACK)
    ends.high_cost, ends.low_cost = cost(at(ends.high)), tried(ends.low)
    if ends.high_cost < least:
        raise RecipeError(f"'{sentence}' costs less than {target:.4f} of dense attention whatever its number")
    if ends.low_cost >= least:
        return at(ends.low)
    for step in range(STEPS):
        middle, known = ends.between(target, step), (at(ends.low), at(ends.high))
        if at(middle) in known:
            middle = (ends.low + ends.high) / 2
        if at(middle) in known:
            break
        found = tried(middle)
        if least <= found <= most:
            return at(middle)
        if found >= least:
            ends.high, ends.high_cost = middle, found
        else:
            ends.low, ends.low_cost = middle, found
    return at(ends.high)
