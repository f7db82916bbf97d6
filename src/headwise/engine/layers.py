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
from headwise.errors import SessionError
from headwise.geometry import unfollowed
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Rope


def new_groups(
    plan: Plan, rows: int, dtype: torch.dtype, device: torch.device, ropes: Sequence[Rope | None], tier: Tier | None
) -> list[list[Group]]:
    """The groups of every layer, empty. ropes: by layer."""
    for layer, shape in enumerate(plan.geometry.layers):
        if (reason := unfollowed(shape.kind, shape.chunk, shape.sinks)) is not None:
            raise SessionError(f"layer {layer} has {reason}, which sessions cannot follow; use a model without")
    full = [one for one in plan.geometry.layers if one.window is None]
    widths = sum(one.kv_heads * (one.key_width + one.value_width) for one in full)

    def new(layer: int, recipe: Recipe, heads: tuple[int, ...]) -> Group:
        evict, own = recipe.evict, plan.geometry.layers[layer]
        shape = Shape(
            lanes=rows * len(heads),
            key_width=own.key_width,
            value_width=own.value_width,
            dtype=dtype,
            with_mass=evict is not None and "mass" in evict.needs,
            notes=evict.notes if evict is not None else 0,
            rope=ropes[layer],
            rows=rows,
        )
        near = None
        if tier is not None and own.window is None:
            near = tier.share(len(heads) * (own.key_width + own.value_width), widths)
        levels = recipe.compress.levels if recipe.compress else [("plain", "plain")]
        store = new_store(shape, levels, device, near)
        dropped = Dropped.none(shape, device) if evict is not None and evict.leaves_mean else None
        return Group(layer, heads, recipe, store, [0] * rows, [0] * rows, [0] * rows, dropped=dropped)

    layers = [[new(layer, *one) for one in plan.groups(layer)] for layer in range(len(plan.geometry.layers))]
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
