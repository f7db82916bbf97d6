"""Which layers a compression writes together."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.cache.spanned import join
from headwise.engine.group import Group
from headwise.recipe import Recipe


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
