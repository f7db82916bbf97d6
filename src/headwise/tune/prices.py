"""What heads cost by measurement: each alone, then one by one around the plans that a number of bytes leads to.

A first-order estimate tells candidates of one head apart, but what is lost grows with its square, and a few heads that
carry a model lose far more than it says (docs/tune.md). So each head is put under the harshest candidate of each family
and the answers' loss is measured; the estimates share that out among the family. Heads that stand in for each other
are each called cheap by that, so they are measured again from where a plan has put all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headwise.cost.prediction import predicted_bytes
from headwise.plan import Plan
from headwise.tune.knapsack import MOST_KINDS, Floats, Ints
from headwise.tune.table import read_table, write_table
from headwise.tune.tuner import Tuner
from headwise.watch import Watch

SMALL = 1e-6  # nats: less is no difference
MOST = 4.0  # of a measured loss, for a candidate that is estimated to lose more than the one that was measured
FACTORS = (0.1, 10.0)  # by which one look around a plan may change what a head costs
STAGES = (2.0, 1.0)  # of the bytes asked for: plans around which heads are measured again
EXCHANGES = 16  # plans that are tried beside the best one, each with one head better off and another worse


def refined(tuner: Tuner, budget: int, watch: Watch, path: Path | None = None) -> tuple[Tuner, list[Plan]]:
    """The tuner with prices as measured around plans of `budget` bytes, and the plans within it that this led to.

    path: where the prices of heads alone are kept, which are the same for every budget; None: nowhere.
    """
    quick, plans = _kept(tuner.quick, watch, path), []
    for size in STAGES:
        if size > 1 and size * budget > tuner.dense_bytes:
            continue
        plan = quick.chosen(int(size * budget))
        plans += [plan] if size == 1 else []
        quick = around(quick, plan, watch)
    plans.append(quick.chosen(budget))
    tuner = tuner.priced(quick.table.losses.double().numpy())
    best = min(plans, key=lambda one: tuner.lost(one)["loss"])
    return tuner, [*plans, exchanged(tuner, best, budget, watch)]


def _kept(tuner: Tuner, watch: Watch, path: Path | None) -> Tuner:
    """The tuner with the prices of heads alone, read from `path` where they were measured before."""
    if path is not None and path.is_file():
        return tuner.priced(read_table(path, tuner.table.menu, tuner.seam.geometry).double().numpy())
    tuner = alone(tuner, watch)
    if path is not None:
        write_table(path, tuner.table)
    return tuner


def alone(tuner: Tuner, watch: Watch) -> Tuner:
    """The tuner with a table that says of every head what was measured with it alone under the harshest candidate that
    evicts and the harshest that does not, and of the others as much less as the square of their estimates is less."""
    estimates, costs, dense = tuner.table.losses.double().numpy(), tuner.costs(), Plan.uniform(tuner.seam.geometry, "")
    losses, places = estimates.copy(), [*_heads(tuner)]
    for done, (layer, head) in enumerate(places):
        watch("measuring heads alone", done, len(places))
        for family in _families(tuner, layer):
            worst = min(family, key=lambda place: costs[place, layer])
            lost = tuner.lost(_with(tuner, dense, layer, head, worst))["loss"]
            own = estimates[family, layer, head] / max(estimates[worst, layer, head], SMALL)
            losses[family, layer, head] = lost * np.minimum(own**2, MOST)
    return tuner.priced(losses)


def around(tuner: Tuner, plan: Plan, watch: Watch) -> Tuner:
    """The tuner with every head's losses made as much larger or smaller as it was found to cost from `plan` on: given
    the fewest bytes there are, or the best candidate where it has these already."""
    losses, costs, places = tuner.table.losses.double().numpy(), tuner.costs(), [*_heads(tuner)]
    before = tuner.lost(plan)["loss"]
    repriced = losses.copy()
    for done, (layer, head) in enumerate(places):
        watch("measuring heads around a plan", done, len(places))
        now, least = tuner.place(plan, layer, head), int(costs[:, layer].argmin())
        other = int(losses[:, layer, head].argmin()) if costs[now, layer] == costs[least, layer] else least
        estimate = losses[other, layer, head] - losses[now, layer, head]
        found = tuner.lost(_with(tuner, plan, layer, head, other))["loss"] - before
        if abs(estimate) > SMALL:
            repriced[:, layer, head] *= np.clip(found / estimate, *FACTORS)
    return tuner.priced(repriced)


def exchanged(tuner: Tuner, plan: Plan, budget: int, watch: Watch) -> Plan:
    """The best of the plans met in going from `plan` to neighbours within `budget` bytes that are measured to lose
    less, those first that are estimated to lose least."""
    loss, tried = tuner.lost(plan)["loss"], set[str]()
    for done in range(EXCHANGES):
        watch("exchanging heads", done, EXCHANGES)
        other = next((one for one in _neighbours(tuner, plan, budget) if one.digest not in tried), None)
        if other is None:
            break
        tried.add(other.digest)
        if (found := tuner.lost(other)["loss"]) < loss:
            plan, loss = other, found
    return plan


@dataclass(frozen=True)
class _Move:
    """A head of a plan under another candidate: what the plan then loses more by the table, and takes more bytes."""

    layer: int
    head: int
    place: int
    loss: float
    taken: int

    def of(self, tuner: Tuner, plan: Plan) -> Plan:
        """The plan that it leads to."""
        return _with(tuner, plan, self.layer, self.head, self.place)


def _neighbours(tuner: Tuner, plan: Plan, budget: int) -> Iterator[Plan]:
    """Plans in which one head takes more bytes than in `plan` and at most one other fewer, by estimated loss."""
    moves = list(_moves(tuner, plan))
    spare = budget - predicted_bytes(plan, tuner.tokens, tuner.model.dtype)
    up, down = [one for one in moves if one.taken > 0], [one for one in moves if one.taken < 0]
    pairs: list[tuple[float, tuple[_Move, ...]]] = [(one.loss, (one,)) for one in up if one.taken <= spare]
    pairs += [
        (one.loss + other.loss, (one, other))
        for one in up
        for other in down
        if (one.layer, one.head) != (other.layer, other.head) and one.taken + other.taken <= spare
    ]
    for _, together in sorted(pairs, key=lambda pair: pair[0]):
        made = plan
        for move in together:
            made = move.of(tuner, made)
        if all(len(set(row)) <= MOST_KINDS for row in made.recipes):
            yield made


def _moves(tuner: Tuner, plan: Plan) -> Iterator[_Move]:
    """Every head of a plan under the candidates next to its own."""
    costs, losses = tuner.costs(), tuner.table.losses.double().numpy()
    for layer, head in _heads(tuner):
        own, taken, now = losses[:, layer, head], costs[:, layer], tuner.place(plan, layer, head)
        for place in _steps(own, taken, now):
            yield _Move(layer, head, place, float(own[place] - own[now]), int(taken[place] - taken[now]))


def _steps(losses: Floats, costs: Ints, now: int) -> list[int]:
    """The candidates next to `now` of those that none beats in bytes and loss: one of more bytes, one of fewer."""
    line: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], losses[place])):
        if not line or losses[place] < losses[line[-1]]:
            line.append(place)
    more = [place for place in line if costs[place] > costs[now]]
    fewer = [place for place in line if costs[place] < costs[now]]
    return more[:1] + fewer[-1:]


def _heads(tuner: Tuner) -> Iterator[tuple[int, int]]:
    """Every KV head as (layer, head)."""
    for layer, count in enumerate(tuner.seam.geometry.kv_heads):
        yield from ((layer, head) for head in range(count))


def _families(tuner: Tuner, layer: int) -> list[list[int]]:
    """Places in the menu of the candidates that evict in a layer, and of those that do not, where there are any."""
    sliding = tuner.seam.geometry.layers[layer].window is not None
    evicting = [recipe.evict is not None and not sliding for recipe in tuner.table.menu]
    both = ([place for place, evicts in enumerate(evicting) if evicts is wanted] for wanted in (True, False))
    return [family for family in both if family]


def _with(tuner: Tuner, plan: Plan, layer: int, head: int, place: int) -> Plan:
    """The plan with one head under another candidate."""
    rows = [list(row) for row in plan.recipes]
    rows[layer][head] = tuner.candidate(place, layer)
    return replace(plan, recipes=tuple(map(tuple, rows)))
