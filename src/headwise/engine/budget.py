"""Bytes by group of heads: what each will hold after a prompt, and what a budget in bytes means in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from headwise.cache.pages import PAGE
from headwise.engine.group import Group
from headwise.engine.layers import new_groups
from headwise.engine.recent import ROOM
from headwise.errors import PlanError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import format_bytes


def group_bytes(plan: Plan, tokens: int, dtype: torch.dtype, spare: int = 0) -> Iterator[tuple[Group, int]]:
    """Every group of heads that share a recipe, with the bytes it holds once a prompt of `tokens` is read.

    spare: tokens counted on top of those of every head.
    """
    shapes = plan.geometry.layers
    ropes = (None,) * len(shapes)  # what lies turned takes as much as what does not
    layers, _ = new_groups(in_tokens(plan, dtype), 1, dtype, torch.device("cpu"), ropes, None)
    for group in (group for layer in layers for group in layer):
        shape = shapes[group.layer]
        kept = plan.count(group.recipe, group.layer, tokens) if shape.window is None else min(shape.window, tokens)
        queries = len(group.heads) * shape.group * min(group.last_queries, tokens) * shape.key_width
        group.planned = [kept + spare]
        yield group, group.predicted_bytes() + queries * dtype.itemsize


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
        counted = sized(recipe, count)
        alone = replace(
            plan, recipes=tuple(tuple(counted if one == recipe else Recipe() for one in r) for r in plan.recipes)
        )
        total = 0
        for group, one in group_bytes(alone, tokens, dtype, spare):
            shape = plan.geometry.layers[group.layer]
            room = ROOM * shape.group * shape.key_width * dtype.itemsize if group.last_queries else 0  # of a head
            total += (one // len(group.heads) + room) * len(followers[group.layer] & set(group.heads))
        return total

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
    return sized(recipe, largest(needed, least, most, target))


def sized(recipe: Recipe, count: int) -> Recipe:
    """The recipe with an eviction budget of `count` tokens."""
    return replace(recipe, evict=replace(recipe.evict, budget=count))


def largest(needed: Callable[[int], int], low: int, high: int, target: int) -> int:
    """The largest count from `low`, which fits, to `high` that needs at most `target`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= target else (low, middle - 1)
    return low
