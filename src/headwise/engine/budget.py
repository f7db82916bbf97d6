"""Bytes before any work: what a plan will hold after a prompt, and the recipe that fits a given amount."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from headwise.cache.pages import PAGE
from headwise.engine.group import Group
from headwise.engine.layers import new_groups
from headwise.errors import ContextError, PlanError, RecipeError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import format_bytes


def predicted_bytes(plan: Plan, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that one sequence of `tokens` holds once its prompt is read, by the groups' own count of them."""
    return sum(held for _, held in group_bytes(plan, tokens, dtype))


def group_bytes(plan: Plan, tokens: int, dtype: torch.dtype, spare: int = 0) -> Iterator[tuple[Group, int]]:
    """Every group of heads that share a recipe, with the bytes it holds once a prompt of `tokens` is read.

    spare: tokens counted on top of those of every head.
    """
    geometry = plan.geometry
    ropes = (None,) * geometry.layers  # what lies turned takes as much as what does not
    layers = new_groups(in_tokens(plan, dtype), 1, dtype, torch.device("cpu"), ropes, None)
    for group in (group for layer in layers for group in layer):
        window = geometry.windows[group.layer]
        kept = plan.count(group.recipe, group.layer, tokens) if window is None else min(window, tokens)
        queries = len(group.heads) * geometry.group * min(group.remembers, tokens) * geometry.key_width
        group.planned = [kept + spare]
        yield group, group.predicted_bytes() + queries * dtype.itemsize


def fitted(plan: Plan, target: int, tokens: int, dtype: torch.dtype) -> Recipe:
    """The one recipe of `plan` with the largest eviction budget, in tokens, whose predicted bytes are at most
    `target`."""
    recipe, geometry = plan.recipes[0][0], plan.geometry

    def needed(count: int) -> int:
        rows = Plan.uniform(geometry, _sized(recipe, count)).recipes
        return predicted_bytes(replace(plan, recipes=rows), tokens, dtype)

    least = max(1, recipe.evict.sinks + recipe.evict.recent)
    if needed(least) > target:
        raise RecipeError(
            f"'{recipe}' takes at least {format_bytes(needed(least))} after {tokens} tokens, more than the "
            f"{format_bytes(target)} allowed; "
            f"give --memory {-(-needed(least) // 1024)}KiB or more, or a shorter prompt"
        )
    return _sized(recipe, _largest(needed, least, max(least, tokens), target))


def in_tokens(plan: Plan, dtype: torch.dtype) -> Plan:
    """The plan with every eviction budget in bytes as a number of tokens.

    The bytes are what all heads that follow the recipe hold together, of one sequence of any length up to the model's:
    keys and values as they are written, with scales, positions and whatever an eviction notes, in whole pages; heads
    that a method leaves whole and windows of sliding layers among them. On top come new tokens between two evictions,
    and what a selection notes. PlanError names the least that works where so few cannot be held.
    """
    given = {recipe for row in plan.recipes for recipe in row if recipe.evict and recipe.evict.amount.bytes is not None}
    if not given:
        return plan
    means = {recipe: _within(plan, recipe, dtype) for recipe in given}
    return replace(plan, recipes=tuple(tuple(means.get(recipe, recipe) for recipe in row) for row in plan.recipes))


def meanings(plan: Plan, counted: Plan) -> list[str]:
    """What each budget in bytes means, of a plan and its `in_tokens`, as text."""
    pairs = {
        pair: None
        for given, found in zip(plan.recipes, counted.recipes, strict=True)
        for pair in zip(given, found, strict=True)
    }
    return [f"'{given}' keeps {found.evict.amount} tokens per KV head" for given, found in pairs if given != found]


def _within(plan: Plan, recipe: Recipe, dtype: torch.dtype) -> Recipe:
    """A recipe whose budget is bytes with the largest number of tokens that never takes more."""
    most, target = plan.geometry.max_positions, recipe.evict.amount.bytes
    followers = [{head for head, one in enumerate(row) if one == recipe} for row in plan.recipes]
    # a budget part may spread its tokens so that every head begins one more page
    spare = PAGE - 1 if recipe.budget is not None else 0

    def held(count: int, tokens: int) -> int:
        sized = _sized(recipe, count)
        alone = replace(
            plan, recipes=tuple(tuple(sized if one == recipe else Recipe() for one in r) for r in plan.recipes)
        )
        groups = group_bytes(alone, tokens, dtype, spare)
        return sum(one * len(followers[g.layer] & set(g.heads)) // len(g.heads) for g, one in groups)

    def needed(count: int) -> int:
        """Of the longest prompt and of the shortest one evicted from, between which a pyramid grows flat."""
        return max(held(count, tokens) for tokens in (most, min(count + 1, most)))

    least = max(1, plan.protected(recipe.evict, most))
    if needed(least) > target:
        raise PlanError(
            f"'{recipe}' takes at least {format_bytes(needed(least))} of one sequence of up to {most} tokens in "
            f"{str(dtype).removeprefix('torch.')}: {least} tokens per KV head always stay (sinks, recent, spans), and "
            "what the method remembers or leaves whole; "
            f"give '{-(-needed(least) // 1024)}KiB' or more, or less sinks= and recent="
        )
    return _sized(recipe, _largest(needed, least, most, target))


def _sized(recipe: Recipe, count: int) -> Recipe:
    return replace(recipe, evict=replace(recipe.evict, budget=count))


def _largest(needed: Callable[[int], int], low: int, high: int, target: int) -> int:
    """The largest count from `low`, which fits, to `high` that needs at most `target`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= target else (low, middle - 1)
    return low


def available_bytes() -> int | None:
    """Memory that this machine can still give, where the system says so."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def check_memory(needed: int, tokens: int, what: str) -> None:
    """Refuse before work starts what cannot fit; names needed and available bytes and the context that would fit."""
    free = available_bytes()
    if free is not None and needed > free:
        raise ContextError(
            f"{what} needs {format_bytes(needed)} of cache for {tokens} tokens, {format_bytes(free)} are free; about "
            f"{tokens * free // needed} tokens would fit: shorten the context, give --memory, or leave the dense "
            "comparison out with --no-compare"
        )
