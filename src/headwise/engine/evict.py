"""The end of a chunk: score, allot, choose, keep; then the ledger compares what is kept with the plan."""

from __future__ import annotations

import torch

from headwise.attention.byproducts import kept_mass
from headwise.attention.view import View
from headwise.cache.evicted_mean import EvictedMean
from headwise.cache.extras import note
from headwise.choose import check_scores, choose_mask
from headwise.engine.group import Group
from headwise.engine.ledger import Eviction
from headwise.engine.read import Reading
from headwise.errors import PlanNotApplied
from headwise.kernels.native.library import unusable
from headwise.methods.budget import Budget
from headwise.plan import Plan

WITNESSES = 32  # last queries of a step whose attention on evicted tokens is reported as lost mass


def evict(reading: Reading, plan: Plan, group: Group, queries: list[torch.Tensor]) -> None:
    """Bring every row of the group down to its planned count; queries [heads, g, w, d] by row, to look at."""
    step, store = reading.step, group.store
    entries = [torch.arange(length) for length in store.lengths]
    records = []
    if group.evicted_mean is not None:
        group.evicted_mean = group.evicted_mean.fork()  # the session may go back to the one there is
    for row, live in enumerate(step.live):
        if not live:
            continue
        lanes = group.lanes(row)
        count = _planned(plan, reading, group, row)
        stored = [store.lengths[lane] for lane in lanes]
        group.planned[row], group.since[row] = min(count, max(stored)), 0
        if max(stored) <= count:
            continue
        if reading.window is not None:
            chosen = [torch.arange(length - count, length) for length in stored]
            lost = (0.0,) * len(lanes)
        else:
            chosen = _choose_row(reading, plan, group, row, count, queries[row])
            lost = _lost_mass(reading, group, row, chosen, queries[row])
        for lane, kept in zip(lanes, chosen, strict=True):
            entries[lane] = kept
            if group.evicted_mean is not None:
                _leave_mean(group.evicted_mean, group, lane, kept)
        kept_counts = tuple(int(kept.numel()) for kept in chosen)
        records.append(Eviction(step.number, group.layer, row, group.heads, step.seen[row], count, kept_counts, lost))
    if records:
        store.keep(entries)
        for record in records:
            _check(group, record)
        reading.ledger.evictions += records


def take_notes(reading: Reading, group: Group, queries: list[torch.Tensor]) -> None:
    """Let an eviction method that keeps notes bring them up to date; queries [heads, g, w, d] by row."""
    method = group.recipe.evict
    if method is None or not method.notes:
        return
    for run in group.runs(by_row=True):
        row = group.row_of(run[0])
        if reading.step.live[row] and group.store.lengths[run[0]]:
            first = group.lanes(row).start
            view = reading.view(group, run, method, queries[row][run[0] - first : run[-1] + 1 - first])
            noted = method.note(view)
            check_scores(noted.flatten(1))
            for lane, notes in zip(run, noted, strict=True):
                note(group.store, lane, notes)


def _planned(plan: Plan, reading: Reading, group: Group, row: int) -> int:
    """Tokens per head that the row is to keep now."""
    if reading.window is not None:
        return reading.window
    total, seen = reading.step.total[row], reading.step.seen[row]
    count = min(plan.count(group.recipe, group.layer, total), seen)
    asked = plan.asked(group.recipe, group.layer, total)
    reading.ledger.floors.pop(group.layer, None)
    if asked < count:
        reading.ledger.floors[group.layer] = (asked, count)
    return count


def _choose_row(
    reading: Reading, plan: Plan, group: Group, row: int, count: int, queries: torch.Tensor
) -> list[torch.Tensor]:
    """Storage indices to keep, one tensor per head of the row."""
    method, budget = group.recipe.evict, group.recipe.budget or Budget()
    lanes = group.lanes(row)
    runs = [run for run in group.runs(by_row=True) if run[0] in lanes]
    longest = max(group.store.lengths[lane] for lane in lanes)
    scores = queries.new_full((len(lanes), longest), float("-inf"), dtype=torch.float32)
    protect = torch.zeros_like(scores, dtype=torch.bool)
    places = [slice(run[0] - lanes.start, run[-1] + 1 - lanes.start) for run in runs]
    views = [reading.view(group, run, method, queries[place]) for run, place in zip(runs, places, strict=True)]
    for view, place in zip(views, places, strict=True):
        # -inf marks entries that a head does not hold, so every held one must score more than that
        scores[place, : view.count] = method.score(view).float().clamp(min=torch.finfo(torch.float32).min)
        protect[place, : view.count] = method.protect(view) | _in_spans(plan, view.positions)
    counts = budget.allot(scores, protect, count)
    held = sum(group.store.lengths[lane] for lane in lanes)
    _check_allotted(group, counts, count, held, int(protect.sum()))
    chosen: list[torch.Tensor] = []
    for run, view, place in zip(runs, views, places, strict=True):
        own = protect[place, : view.count]
        best = choose_mask(scores[place, : view.count], counts[place], own)
        stays = best & method.whole(view, best) | own
        _merge(group, run, view, stays)
        chosen += [mask.nonzero()[:, 0] for mask in stays]
    return chosen


def _merge(group: Group, run: range, view: View, stays: torch.Tensor) -> None:
    """Let what stays take in what leaves, where the method does that; values that it leaves alone are not rewritten."""
    merged = group.recipe.evict.merged(view, stays)
    if merged is not None:
        check_scores(merged.flatten(1))
        changed = stays & (merged != view.values).any(-1)
        for lane, values, mask in zip(run, merged, changed, strict=True):
            group.store.revalue(lane, mask.nonzero()[:, 0], values[mask])


def _check_allotted(group: Group, counts: torch.Tensor, count: int, held: int, protected: int) -> None:
    """Raise PlanNotApplied unless the budget shares out what the plan says: all of it, and no more."""
    planned, allotted = count * len(counts), int(counts.sum())
    if not min(planned, held) <= allotted <= max(planned, protected):
        raise PlanNotApplied(
            f"layer {group.layer}, heads {group.heads}: the plan says {count} tokens per head, {planned} in all, but "
            f"the budget in '{group.recipe}' gives {counts.tolist()}; allot() must return counts that sum to {planned}"
        )


def _leave_mean(mean: EvictedMean, group: Group, lane: int, kept: torch.Tensor) -> None:
    """Add what a lane is about to lose to the mean of what was evicted of it."""
    held = group.store.segment(lane, lane + 1)
    gone = torch.ones(held.keys.shape[1], dtype=torch.bool, device=held.keys.device)
    gone[kept] = False
    mean.add(lane, held.keys[0, gone], held.values[0, gone], held.positions[0, gone])


def _in_spans(plan: Plan, positions: torch.Tensor) -> torch.Tensor:
    inside = torch.zeros_like(positions, dtype=torch.bool)
    for start, end in plan.spans:
        inside |= (positions >= start) & (positions < end)
    return inside


def _lost_mass(
    reading: Reading, group: Group, row: int, chosen: list[torch.Tensor], queries: torch.Tensor
) -> tuple[float, ...]:
    """By head, the share of this step's last queries' attention that falls on tokens about to be evicted."""
    lanes, last = group.lanes(row), min(WITNESSES, reading.step.live[row])
    lost: list[float] = []
    runs = [run for run in group.runs(by_row=True) if run[0] in lanes]
    if unusable():  # plain torch holds all probabilities of a call at once
        runs = [range(lane, lane + 1) for run in runs for lane in run]
    for run in runs:
        own = slice(run[0] - lanes.start, run[-1] + 1 - lanes.start)
        keys = group.store.keys(run[0], run[-1] + 1)
        mask = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
        for head, kept in zip(mask, chosen[own], strict=True):
            head[kept] = True
        witnesses = queries[own, :, -min(last, keys.shape[1]) :]
        mass = kept_mass(witnesses, keys, mask, reading.sees, reading.weighing(group.heads[own]))
        lost += (1.0 - mass).tolist()
    return tuple(lost)


def _check(group: Group, record: Eviction) -> None:
    """Raise PlanNotApplied when the store does not hold what was chosen."""
    held = tuple(group.store.lengths[lane] for lane in group.lanes(record.row))
    if held != record.kept:
        raise PlanNotApplied(
            f"layer {record.layer}, heads {record.heads}: the store holds {held} tokens, chosen were {record.kept}; "
            f"report this with the recipe '{group.recipe}'"
        )
