"""Bytes before any work: what a plan will hold after a prompt, the recipe that fits, and whether memory has room."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from headwise.engine.budget import group_bytes, largest, sized
from headwise.errors import ContextError, RecipeError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import format_bytes


def predicted_bytes(plan: Plan, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that one sequence of `tokens` holds once its prompt is read, by the groups' own count of them, and in
    the states of its layers."""
    return sum(held for _, held in group_bytes(plan, tokens, dtype)) + plan.geometry.state_bytes(dtype)


def fitted(plan: Plan, target: int, tokens: int, dtype: torch.dtype) -> Recipe:
    """The one recipe of `plan` with the largest eviction budget, in tokens, whose predicted bytes are at most
    `target`."""
    recipe, geometry = plan.recipes[plan.geometry.attending[0]][0], plan.geometry

    def needed(count: int) -> int:
        rows = Plan.uniform(geometry, sized(recipe, count)).recipes
        return predicted_bytes(replace(plan, recipes=rows), tokens, dtype)

    least = max(1, recipe.evict.sinks + recipe.evict.recent)
    if needed(least) > target:
        raise RecipeError(
            f"'{recipe}' takes at least {format_bytes(needed(least))} after {tokens} tokens, more than the "
            f"{format_bytes(target)} allowed; "
            f"give --memory {-(-needed(least) // 1024)}KiB or more, or a shorter prompt"
        )
    return sized(recipe, largest(needed, least, max(least, tokens), target))


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
