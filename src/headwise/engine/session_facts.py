"""What a session's file may say, and the checks that it all fits before a session is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from headwise.cache.state import State
from headwise.engine.group import Group
from headwise.errors import SessionError
from headwise.geometry import LayerGeometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.schema import Count, Facts, Positive, Seed
from headwise.shapes import Mark


class GroupFacts(Facts):
    """Counts of a group by row, see `Group`."""

    planned: tuple[Count, ...]
    since: tuple[Count, ...]
    passed: tuple[Count, ...]


class ClockFacts(Facts):
    """Where a session stands between evictions."""

    steps: Count
    since_eviction: Count


class SessionFacts(Facts):
    """What a session's file says beside its tensors."""

    plan: str
    model: str
    dtype: Literal["torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"]
    rows: Positive
    seed: Seed
    seen: tuple[Count, ...]
    groups: tuple[GroupFacts, ...]
    passed: Count
    clock: ClockFacts
    marks: tuple[Mark, ...]
    extra: dict[str, Any]

    @property
    def element(self) -> torch.dtype:
        """The element type of keys and values."""
        found: torch.dtype = getattr(torch, self.dtype.removeprefix("torch."))
        return found


def refuse_counts(facts: SessionFacts, plan: Plan, interval: int) -> None:
    """Refuse numbers that disagree with each other or with the plan. interval: decode steps between evictions."""
    groups = sum(len(plan.groups(layer)) for layer in range(len(plan.recipes)))
    if len(facts.seen) != facts.rows or len(facts.groups) != groups:
        raise SessionError(
            f"it counts {len(facts.seen)} rows and {len(facts.groups)} groups, expected {facts.rows} and {groups}"
        )
    if facts.passed < max(facts.seen):
        raise SessionError(f"passed = {facts.passed} columns of the batch, but a row has seen {max(facts.seen)} tokens")
    if plan.longest is not None and max(facts.seen) > plan.longest:
        raise SessionError(f"seen = {max(facts.seen)} tokens, but the model has {plan.longest} positions")
    if facts.clock.since_eviction >= interval:
        raise SessionError(f"clock.since_eviction = {facts.clock.since_eviction}, expected less than {interval}")
    for place, group in enumerate(facts.groups):
        for name, counts in group:
            if len(counts) != facts.rows or any(a > b for a, b in zip(counts, facts.seen, strict=True)):
                raise SessionError(f"groups.{place}.{name} = {counts[:8]} for rows that have seen {facts.seen[:8]}")
        if group.passed != facts.seen:
            raise SessionError(f"groups.{place}.passed = {group.passed[:8]} for rows that have seen {facts.seen[:8]}")


def refuse_lanes(facts: SessionFacts, plan: Plan, state: State) -> None:
    """Refuse more rows than there are tensors of, before stores are made for them."""
    groups = [group for layer in range(len(plan.recipes)) for group in plan.groups(layer)]
    for place, (_, heads) in enumerate(groups):
        own = state.under(f"{place}.")
        (own if "lengths" in own else own.under("0.")).counts("lengths", facts.rows * len(heads))


def expect_group(group: Group, state: State, seen: Sequence[int], plan: Plan) -> None:
    """Refuse tensors that are not what a group holds, of rows that have seen so many tokens."""
    shape, grouped = group.store.shape, plan.geometry.layers[group.layer].group
    group.store.expect(state, [count for count in seen for _ in group.heads])
    for row, count in enumerate(seen):
        kept = (("tail", group.last_queries > 0, group.last_queries), ("uncounted", group.counts_mass, count))
        for name, keeps, most in kept:
            if keeps and f"{name}.{row}" in state:
                sizes = (len(group.heads), grouped, None, shape.key_width)
                queries = state.take(f"{name}.{row}", shape.dtype, sizes)
                if queries.shape[2] > most:
                    raise SessionError(f"'{state.prefix}{name}.{row}' has {queries.shape[2]} queries, at most {most}")
                if name == "uncounted" and group.keeps_lse:
                    wide = torch.float64 if shape.dtype == torch.float64 else torch.float32
                    state.take(f"lse.{row}", wide, queries.shape[:3])
    if group.evicted_mean is not None:
        for name, own in group.evicted_mean.state().items():
            state.take(f"dropped.{name}", own.dtype, own.shape)
        _refuse_mean(group, state, seen)


def _refuse_mean(group: Group, state: State, seen: Sequence[int]) -> None:
    """Refuse a mean of more tokens than were seen, or whose last is not one of them."""
    lanes = len(seen) * len(group.heads)
    counts = state.counts("dropped.counts", lanes)
    last = state.counts("dropped.last", lanes, least=-1)
    for lane, (count, end) in enumerate(zip(counts, last, strict=True)):
        most = seen[group.row_of(lane)]
        if count > most or end >= most or (count == 0) != (end == -1):
            raise SessionError(f"'{state.prefix}dropped': {count} tokens up to {end} in lane {lane}, which saw {most}")


def expect_notes(state: State, groups: Sequence[Group], seen: Sequence[int], plan: Plan) -> dict[str, torch.Tensor]:
    """What methods noted, by place: refused where no method of the plan notes such a thing there."""
    noting = {(group.layer, head): _noted(group.recipe) for group in groups for head in group.heads}
    found = state.all()
    for place, tensor in found.items():
        numbers, name = place.split(".", 5)[:5], place.split(".", 5)[-1]
        if place.count(".") < 5 or not all(one.isascii() and one.isdigit() for one in numbers):
            raise SessionError(f"'{state.prefix}{place}' does not name row, layer, head, tokens, place and note")
        row, layer, head, tokens, _ = (int(one[:20]) for one in numbers)
        known = noting.get((layer, head), {})
        if name not in known or row >= len(seen) or tokens > seen[row]:
            raise SessionError(f"'{state.prefix}{place}' is no note of a method, a head and a token that there are")
        shape = plan.geometry.layers[layer]
        state.take(place, tensor.dtype, _note_sizes(known[name], tensor, shape, groups[0].store.shape.dtype))
        if "int" in known[name] and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= tokens:
            raise SessionError(f"'{state.prefix}{place}' has positions beyond the {tokens} tokens seen")
        if "int" in known[name] and tensor.dim() == 1 and not bool((tensor.diff() > 0).all()):
            raise SessionError(f"'{state.prefix}{place}' has positions that do not ascend")
    _refuse_apart(state, found, noting)
    return found


def _noted(recipe: Recipe) -> dict[str, str]:
    """What the methods of a recipe note, by name."""
    return {
        name: sizes for part in (recipe.select, recipe.steer) if part is not None for name, sizes in part.noted.items()
    }


def _refuse_apart(
    state: State, found: Mapping[str, torch.Tensor], noting: Mapping[tuple[int, int], Mapping[str, str]]
) -> None:
    """Refuse notes of one head that tell of the same things, letter s, but of differently many, or of none."""
    counts: dict[tuple[int, int, int], dict[str, tuple[int, int, int]]] = {}
    for place, tensor in found.items():
        *numbers, name = place.split(".", 5)
        row, layer, head, tokens, copy = map(int, numbers)
        if "s" in noting[layer, head][name].split():
            newest = counts.setdefault((row, layer, head), {})
            newest[name] = max(newest.get(name, (0, 0, 0)), (tokens, copy, len(tensor)))
    for (row, layer, head), newest in counts.items():
        sizes = {name: count for name, (_, _, count) in newest.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            place = f"{state.prefix}{row}.{layer}.{head}"
            raise SessionError(f"'{place}': notes that belong together are of {sizes} things")


def _note_sizes(letters: str, tensor: torch.Tensor, shape: LayerGeometry, dtype: torch.dtype) -> list[int | None]:
    """What the sizes of a note should be, by the letters of its method: s things that several notes tell of, any n."""
    words = letters.split()
    told = {"int": {torch.int32, torch.int64}, "double": {torch.float64}}
    kinds = told.get(words[0], {torch.float32, dtype})
    if tensor.dtype not in kinds:
        raise SessionError(f"a note of {letters.split()} is {tensor.dtype}")
    known = {"d": shape.key_width, "e": shape.value_width, "g": shape.group, "n": None, "s": None}
    return [known[word] if word in known else int(word) for word in words[words[0] in told :]]


def refuse_stored(groups: Sequence[Group], seen: Sequence[int], plan: Plan) -> None:
    """Refuse tokens that lie twice or out of order, or are missing where all are kept."""
    for place, group in enumerate(groups):
        whole = group.recipe.evict is None and plan.geometry.layers[group.layer].window is None
        for lane, length in enumerate(group.store.lengths):
            positions = group.store.positions(lane) if length else torch.zeros(0)
            if not bool((positions.diff() > 0).all()) or (whole and length != seen[group.row_of(lane)]):
                raise SessionError(
                    f"group {place}, lane {lane} holds {length} tokens, some twice, out of order or not all of the "
                    f"{seen[group.row_of(lane)]} that it keeps"
                )
