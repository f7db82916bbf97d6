"""The groups of every layer when a session opens, and which of them lie together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.cache.dropped import Dropped
from headwise.cache.levels import new_store
from headwise.cache.spanned import join
from headwise.cache.store import Shape
from headwise.cache.tiers import Tier
from headwise.engine.group import Group
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Rope


def new_groups(
    plan: Plan, rows: int, dtype: torch.dtype, device: torch.device, ropes: Sequence[Rope | None], tier: Tier | None
) -> list[list[Group]]:
    """The groups of every layer, empty. ropes: by layer."""
    geometry = plan.geometry
    full = geometry.windows.count(None) * geometry.kv_heads

    def new(layer: int, recipe: Recipe, heads: tuple[int, ...]) -> Group:
        evict = recipe.evict
        shape = Shape(
            lanes=rows * len(heads),
            key_width=geometry.key_width,
            value_width=geometry.value_width,
            dtype=dtype,
            with_mass=evict is not None and "mass" in evict.view_needs,
            notes=evict.notes if evict is not None else 0,
            rope=ropes[layer],
            rows=rows,
        )
        own = None
        if tier is not None and geometry.windows[layer] is None:
            own = tier.share(len(heads), full)
        levels = recipe.compress.levels if recipe.compress else [("plain", "plain")]
        store = new_store(shape, levels, device, own)
        dropped = Dropped.none(shape, device) if evict is not None and evict.leaves_mean else None
        return Group(layer, heads, recipe, store, [0] * rows, [0] * rows, [0] * rows, dropped=dropped)

    layers = [[new(layer, *one) for one in plan.groups(layer)] for layer in range(geometry.layers)]
    join_spans(layers)
    return layers


def join_spans(layers: Sequence[Sequence[Group]]) -> None:
    """Join the stores of groups of one recipe, in the order of their layers and as many as its compression takes
    together; layers without the recipe, such as sliding ones, are passed over."""
    by_recipe: dict[Recipe, list[Group]] = {}
    for group in (group for layer in layers for group in layer):
        if group.recipe.compress is not None and group.recipe.compress.span is not None:
            by_recipe.setdefault(group.recipe, []).append(group)
    for recipe, groups in by_recipe.items():
        for first in range(0, len(groups), recipe.compress.span):
            join([group.store.parts for group in groups[first : first + recipe.compress.span]])
