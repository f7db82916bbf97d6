"""One recipe for every KV head within a number of bytes, at the least loss in all: a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headwise.errors import PlanError
from headwise.shapes import format_bytes

UNITS = 128  # parts of a head's even share of bytes: costs round up to one, so at most 1/UNITS of the budget is idle
CORE = 64  # heads that are chosen for together; of more, those whose choice is settled by one price are settled first
HALVINGS = 60  # of the price, until two neighbours are one in double precision
MOST_KINDS = 4  # distinct recipes in a layer: each is a store of its own, read by calls of its own

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def spend(losses: Floats, costs: Ints, heads: Sequence[int], budget: int) -> list[Ints]:
    """By layer the recipe of every head, of least summed loss whose summed bytes are at most `budget`.

    losses: [recipes, layers, most heads of a layer]. costs: bytes of one head, [recipes, layers]. heads: by layer. No
    layer has more than MOST_KINDS recipes. Raises PlanError, naming the least bytes, where even the cheapest recipes
    take more.
    """
    _check(costs, heads, budget)
    there = np.arange(losses.shape[2]) < np.array(heads)[:, None]
    by_head = np.repeat(costs, heads, axis=1)
    picked = np.split(_spent(losses[:, there].T, by_head.T, budget), np.cumsum(heads)[:-1])
    for layer, count in enumerate(heads):
        while len(set(picked[layer].tolist())) > MOST_KINDS:
            picked[layer] = _merged(picked[layer], losses[:, layer, :count], costs[:, layer])
    return picked


def _check(costs: Ints, heads: Sequence[int], budget: int) -> None:
    """Raise PlanError unless the cheapest recipes fit, rounded up to units."""
    least = int((costs.min(0) * heads).sum())
    if least > budget - budget // UNITS:
        raise PlanError(
            f"the cheapest recipes take {format_bytes(least)}, more than the {format_bytes(budget)} allowed; give "
            f"{-(-least_budget(costs, heads) // 1024)}KiB or more, or candidates that take less"
        )


def least_budget(costs: Ints, heads: Sequence[int]) -> int:
    """Bytes that are surely enough for the cheapest recipes, [recipes, layers] by head, rounded up to units."""
    return -(-int((costs.min(0) * heads).sum()) * (UNITS + 3) // UNITS)


def _spent(losses: Floats, costs: Ints, budget: int) -> Ints:
    """The recipe of each head: losses and costs [heads, recipes]; time is linear in heads beyond CORE of them.

    At one price of a byte, most heads have a recipe far better than their next one: they get it. Only the CORE heads
    where it makes least difference are chosen for exactly, within what the others leave (D. Pisinger, A minimal
    algorithm for the multiple-choice knapsack problem, EJOR 83, 1995, whose core grows until optimality is proven).
    """
    if len(losses) <= CORE:
        return _exact(losses, costs, budget)
    priced = losses + _price(losses, costs, budget - budget // UNITS) * costs
    chosen = priced.argmin(1)
    first, second = np.partition(priced, 1, axis=1)[:, :2].T
    core = np.argpartition(second - first, CORE)[:CORE]
    others = np.delete(np.arange(len(losses)), core)
    chosen[core] = _exact(losses[core], costs[core], budget - int(costs[others, chosen[others]].sum()))
    return chosen


def _price(losses: Floats, costs: Ints, budget: int) -> float:
    """The least loss by byte at which heads that are each best off at that price take at most `budget` in all."""
    places = np.arange(len(losses))

    def taken(price: float) -> int:
        return int(costs[places, (losses + price * costs).argmin(1)].sum())

    low, high = 0.0, float(np.ptp(losses)) + 1.0  # at the high end a byte outweighs every loss
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if taken(middle) <= budget else (middle, high)
    return high


def _exact(losses: Floats, costs: Ints, budget: int) -> Ints:
    """Dynamic programming over the bytes left: losses and costs [heads, recipes] -> the recipe of each head.

    (H. Kellerer, U. Pferschy and D. Pisinger, Knapsack Problems, 2004, section 11.5.)
    """
    heads, recipes = losses.shape
    unit = max(1, budget // (UNITS * heads))
    units, room = -(-costs // unit), budget // unit
    best = np.zeros(room + 1)
    taken = np.zeros((heads, room + 1), dtype=np.int16)
    for head in range(heads):
        trial = np.full((recipes, room + 1), np.inf)
        for recipe in range(recipes):
            cost = units[head, recipe]
            if cost <= room:
                trial[recipe, cost:] = best[: room + 1 - cost] + losses[head, recipe]
        taken[head], best = trial.argmin(0), trial.min(0)
    chosen = np.zeros(heads, dtype=np.int64)
    for head in reversed(range(heads)):
        chosen[head] = taken[head, room]
        room -= units[head, chosen[head]]
    return chosen


def _merged(chosen: Ints, losses: Floats, costs: Ints) -> Ints:
    """A layer's recipes with one kind less: its heads move to others of the layer that take no more bytes.

    chosen [heads], losses [recipes, heads], costs [recipes]; the kind goes whose heads lose least by it.
    """
    kinds = sorted(set(chosen.tolist()))
    places = np.arange(len(chosen))
    trials = []
    for gone in kinds:
        others = [kind for kind in kinds if kind != gone and costs[kind] <= costs[gone]]
        if others:
            instead = np.array(others)[losses[others].argmin(0)]
            trials.append(np.where(chosen == gone, instead, chosen))
    return min(trials, key=lambda trial: float(losses[trial, places].sum()))
