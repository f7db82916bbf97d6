"""Recipes and plans over all registered methods, at knobs that leave tokens out of a hundred."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from headwise.errors import HeadwiseError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import PARTS, all_methods, methods
from tests.contract.drive import SMALL

DRAWN: dict[str, Any] = {
    "budget": st.sampled_from([0.1, 0.3, 0.5, 0.9, 20, 48]),
    "sinks": st.integers(0, 5),
    "recent": st.sampled_from([0, 1, 4, 6, 40]),
    "window": st.sampled_from([1, 8, 24]),
    "memory": st.sampled_from([1, 16, 32]),
    "skip_layers": st.integers(0, 1),
}


@st.composite
def part(draw: st.DrawFn, kind: str) -> Any:
    """A method of a kind, or none; None too where the knobs do not go together."""
    name = draw(st.none() | st.sampled_from(sorted(methods(kind))))
    if name is None:
        return None
    cls = all_methods()[name]
    knobs = {one: value for one, value in SMALL.items() if one in {field.name for field in fields(cls)}}
    for knob in sorted(knobs.keys() & DRAWN.keys()):
        if draw(st.booleans()):
            knobs[knob] = draw(DRAWN[knob])
    try:
        return cls(**knobs)
    except HeadwiseError:
        return cls()


@st.composite
def recipes(draw: st.DrawFn, without: tuple[str, ...] = ()) -> Recipe:
    """Any recipe; parts that another one refuses are left out."""
    parts = {kind: draw(part(kind)) for kind in PARTS if kind not in without}
    for kind in ("", "steer", "budget", "prefill", "select", "evict"):
        parts.pop(kind, None)
        try:
            return Recipe(**parts)
        except HeadwiseError:
            continue
    return Recipe()


Sentences = tuple[str, ...]  # of one recipe, or of two that heads or layers take in turn


@st.composite
def sentences(draw: st.DrawFn, without: tuple[str, ...] = ()) -> Sentences:
    """What `plan` makes a plan of: readable where a case is printed."""
    count = draw(st.sampled_from([1, 1, 2]))
    return tuple(str(draw(recipes(without))) for _ in range(count))


def plan(shape: Geometry, drawn: Sentences, by_layer: bool) -> Plan:
    """The recipes in turn, over heads or over layers; dense where the plan is refused."""
    found = [Recipe.parse(sentence) for sentence in drawn]
    rows = [[found[(i if by_layer else j) % len(found)] for j in range(n)] for i, n in enumerate(shape.kv_heads)]
    try:
        return Plan(shape, tuple(map(tuple, rows)))
    except HeadwiseError:
        return Plan.uniform(shape, Recipe())
