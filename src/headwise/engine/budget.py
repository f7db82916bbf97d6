"""Bytes before any work: what a plan will hold after a prompt, and the recipe that fits a given amount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from headwise.engine.group import Group
from headwise.engine.session import Session
from headwise.errors import ContextError, RecipeError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Geometry, format_bytes


def predicted_bytes(plan: Plan, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that one sequence of `tokens` holds once its prompt is read, by the groups' own count of them."""
    return sum(held for _, held in group_bytes(plan, tokens, dtype))


def group_bytes(plan: Plan, tokens: int, dtype: torch.dtype) -> Iterator[tuple[Group, int]]:
    """Every group of heads that share a recipe, with the bytes it holds once a prompt of `tokens` is read."""
    geometry = plan.geometry
    for group in Session(plan, dtype=dtype).groups:
        window = geometry.windows[group.layer]
        kept = plan.count(group.recipe, group.layer, tokens) if window is None else min(window, tokens)
        queries = len(group.heads) * geometry.group * min(group.remembers, tokens) * geometry.key_width
        group.planned = [kept]
        yield group, group.predicted_bytes() + queries * dtype.itemsize


def fitted(geometry: Geometry, recipe: Recipe, target: int, tokens: int, dtype: torch.dtype) -> Recipe:
    """`recipe` with the largest eviction budget, in tokens, whose predicted bytes are at most `target`."""

    def sized(count: int) -> Recipe:
        return replace(recipe, evict=replace(recipe.evict, budget=count))

    def needed(count: int) -> int:
        return predicted_bytes(Plan.uniform(geometry, sized(count)), tokens, dtype)

    least = max(1, recipe.evict.sinks + recipe.evict.recent)
    if needed(least) > target:
        raise RecipeError(
            f"'{recipe}' takes at least {format_bytes(needed(least))} after {tokens} tokens, more than the "
            f"{format_bytes(target)} allowed; "
            f"give --memory {-(-needed(least) // 1024)}KiB or more, or a shorter prompt"
        )
    low, high = least, max(least, tokens)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= target else (low, middle - 1)
    return sized(low)


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
