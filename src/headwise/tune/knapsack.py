"""One recipe for every KV head within a number of bytes, at the least loss in all: a multiple-choice knapsack."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwise.errors import PlanError
from headwise.shapes import format_bytes

UNITS = (
    128  # parts of a head's even share of the bytes: costs round up to one, so at most 1/UNITS of the budget is idle
)
MOST_KINDS = 4  # distinct recipes in a layer: each is a store of its own, read by calls of its own

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def spend(losses: Floats, costs: Ints, budget: int) -> Ints:
    """The recipe of every head, [layers, heads], of least summed loss whose summed bytes are at most `budget`.

    losses: [recipes, layers, heads]. costs: bytes of one head, [recipes, layers]. No layer has more than MOST_KINDS
    recipes. Raises PlanError, naming the least bytes, where even the cheapest recipes take more.
    """
    recipes, layers, heads = losses.shape
    by_head = np.repeat(costs[:, :, None], heads, axis=2)
    chosen = _exact(losses.reshape(recipes, -1).T, by_head.reshape(recipes, -1).T, budget).reshape(layers, heads)
    for layer in range(layers):
        while len(set(chosen[layer].tolist())) > MOST_KINDS:
            chosen[layer] = _merged(chosen[layer], losses[:, layer], costs[:, layer])
    return chosen


def _exact(losses: Floats, costs: Ints, budget: int) -> Ints:
    """Dynamic programming over the bytes left: losses and costs [heads, recipes] -> the recipe of each head.

    (H. Kellerer, U. Pferschy and D. Pisinger, Knapsack Problems, 2004, section 11.5.)
    """
    heads, recipes = losses.shape
    least = int(costs.min(1).sum())
    unit = max(1, budget // (UNITS * heads))
    units, room = -(-costs // unit), budget // unit
    if int(units.min(1).sum()) > room:
        raise PlanError(
            f"the cheapest recipes take {format_bytes(least)}, more than the {format_bytes(budget)} allowed; give "
            f"{-(-least * (UNITS + 3) // (UNITS * 1024))}KiB or more, or candidates that take less"
        )
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
