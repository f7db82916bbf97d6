"""The groups of every layer when a session opens and when it is copied, and the spans of layers that lie together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap

import torch

from headwise.cache.evicted_mean import EvictedMean
from headwise.cache.factory import new_span, new_store
from headwise.cache.kv_store import KVStore
from headwise.cache.shape import Shape
from headwise.cache.span import Span
from headwise.cache.tiers import Tier
from headwise.engine.group import Group
from headwise.engine.read import Reading, read
from headwise.engine.reader import Reader
from headwise.forms import Attended
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Rope

Taken = list[tuple[Group, torch.Tensor, torch.Tensor, torch.Tensor]]  # groups with their own q, k and v, by lanes


@dataclass(frozen=True)
class _Place:
    """Heads of a layer that follow one recipe."""

    layer: int
    recipe: Recipe
    heads: tuple[int, ...]


def new_groups(
    plan: Plan, rows: int, dtype: torch.dtype, device: torch.device, ropes: Sequence[Rope | None], tier: Tier | None
) -> tuple[list[list[Group]], list[Span]]:
    """The groups of every layer, empty, and the spans that some of their stores are in. ropes: by layer."""
    places = [_Place(layer, *one) for layer in range(len(plan.geometry.layers)) for one in plan.groups(layer)]
    shapes = {place: _shape(plan, place, rows, dtype, ropes[place.layer]) for place in places}
    full = [place for place in places if plan.geometry.layers[place.layer].window is None]
    channels = sum(_channels(plan, place) for place in full)
    spans: list[Span] = []
    stores: dict[_Place, KVStore] = {}
    for together in _together(places) if tier is None else ():  # with a tier, `new_store` refuses what is in levels
        spans.append(new_span([shapes[place] for place in together], _levels(plan, together[0]), device))
        stores |= dict(zip(together, spans[-1].stores, strict=True))
    layers: list[list[Group]] = [[] for _ in plan.geometry.layers]
    for place, shape in shapes.items():
        far = tier.share(_channels(plan, place), channels) if tier is not None and place in full else None
        store = stores.get(place) or new_store(shape, _levels(plan, place), device, far)
        evict = place.recipe.evict
        mean = EvictedMean.none(shape, device) if evict is not None and evict.leaves_mean else None
        counts = [0] * rows, [0] * rows, [0] * rows
        layers[place.layer].append(Group(place.layer, place.heads, place.recipe, store, *counts, evicted_mean=mean))
    return layers, spans


def _channels(plan: Plan, place: _Place) -> int:
    """Channels of keys and values that a place's heads have of a token."""
    return len(place.heads) * plan.geometry.layers[place.layer].token_width


def lanes_of(group: Group, x: torch.Tensor) -> torch.Tensor:
    """What of a layer's x [b, h, ...] is of a group's heads: [lanes, ...]."""
    return x[:, group.place].flatten(0, 1)


def of_all_heads(groups: Sequence[Group], parts: Sequence[Attended]) -> Attended:
    """What the lanes of each group of a layer have read, as that of all heads in their order: out [b * h, g, t, e]."""
    if len(parts) == 1:
        return parts[0]
    return Attended(in_order(groups, [part.out for part in parts]), in_order(groups, [part.lse for part in parts]))


def in_order(groups: Sequence[Group], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What there is of the lanes of each group of a layer, [lanes, ...], as that of all heads: [b * h, ...]."""
    order = torch.tensor([head for group in groups for head in group.heads]).argsort()
    by_row = [x.unflatten(0, (-1, len(group.heads))) for x, group in zip(parts, groups, strict=True)]
    return torch.cat(by_row, dim=1)[:, order].flatten(0, 1)


def read_groups(reading: Reading, own: Taken) -> Attended:
    """What the groups of a layer read, one after the other, of new tokens that they took in."""
    return of_all_heads([group for group, *_ in own], list(starmap(partial(read, reading), own)))


def layer_reader(groups: Sequence[Group]) -> Reader | None:
    """What reads all groups of a layer at once in a step of decoding; None where one does not read all it holds."""
    if not all(group.reads_all for group in groups):
        return None
    return Reader([group.store for group in groups], [group.heads for group in groups])


def _levels(plan: Plan, place: _Place) -> Sequence[tuple[str, ...]]:
    """The codecs of keys and values at each level of precision; of the keys alone, where values are parts of them."""
    levels = place.recipe.compress.levels if place.recipe.compress else [("plain", "plain")]
    return [codecs[:1] for codecs in levels] if plan.geometry.layers[place.layer].kind == "latent" else levels


def _shape(plan: Plan, place: _Place, rows: int, dtype: torch.dtype, rope: Rope | None) -> Shape:
    """What the store of some heads holds."""
    evict, own = place.recipe.evict, plan.geometry.layers[place.layer]
    return Shape(
        lanes=rows * len(place.heads),
        key_width=own.key_width,
        value_width=own.value_width,
        dtype=dtype,
        codecs=_levels(plan, place)[0],
        with_mass=evict is not None and "mass" in evict.view_needs,
        notes=evict.notes if evict is not None else 0,
        rope=rope,
        rows=rows,
    )


def _together(places: Sequence[_Place]) -> list[list[_Place]]:
    """The places whose tokens lie together: of one recipe, in the order of their layers and as many as its compression
    takes; layers without the recipe, such as sliding ones, are passed over."""
    by_recipe: dict[Recipe, list[_Place]] = {}
    for place in places:
        if place.recipe.compress is not None and place.recipe.compress.span is not None:
            by_recipe.setdefault(place.recipe, []).append(place)
    return [
        own[first : first + recipe.compress.span]
        for recipe, own in by_recipe.items()
        for first in range(0, len(own), recipe.compress.span)
    ]


def fork_groups(layers: Sequence[Sequence[Group]], spans: Sequence[Span]) -> tuple[list[list[Group]], list[Span]]:
    """Independent copies of the groups of every layer, and of the spans that some of their stores are in."""
    copies = [span.fork() for span in spans]
    stores: dict[KVStore, KVStore] = {
        old: new
        for span, copied in zip(spans, copies, strict=True)
        for old, new in zip(span.stores, copied.stores, strict=True)
    }
    return [[group.fork(stores.get(group.store)) for group in layer] for layer in layers], copies
