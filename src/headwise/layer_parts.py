"""The parts of trainable attention layers: a room for each slot of the layer sentence, a part a file of `layers/`.

Declared here, below the layers themselves, so that lists and documentation name a part without building one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headwise.errors import HeadwiseError
from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room, among
from headwise.sentence import Call, read_call

if TYPE_CHECKING:
    from headwise.layers.base import Streams

Part = TypeVar("Part", bound=type)
SLOTS = ("project", "position", "pattern", "score", "normalise", "mix", "out")
# Mixes are the largest family, so that each kind of them has a folder.
FOLDERS = {slot: (slot,) for slot in SLOTS} | {
    "mix": ("linear", "delta", "memory"),
    "pattern": ("sparse",),
    "out": ("out", "heads"),
}
LAYER_PARTS: dict[str, Room[type]] = {
    slot: Room(f"{slot} part", *(f"headwise.layers.{folder}" for folder in FOLDERS[slot])) for slot in SLOTS
}


# What follows attention in a decoder layer is no part of a layer's sentence; a host's config names it.
FEEDS: Room[type] = Room("feed part", "headwise.layers.experts")


def _same(streams: Streams) -> Streams:
    return streams


@dataclass(frozen=True)
class Limit:
    """A case in which a layer is another one: on the streams that `change` makes, both read the same.

    says: the case in words. other: the other layer's sentence. of: the layer itself, where it is not the part's name
    alone.
    """

    says: str
    other: str
    change: Callable[[Streams], Streams] = _same
    of: str = ""


@dataclass(frozen=True)
class LayerCard:
    """What somebody who builds a layer needs to know of a part.

    changes: in a sentence, what it does otherwise than plain multi-head attention. equation: the paper's, in its own
    letters. systems: rows of the list of published systems that it stands for. state: what it keeps of the tokens
    so far: "none", or "constant" bytes in any length. equals: its limit cases.
    deviations: where it differs from the paper or its code, and which part of a row it does not stand for.
    """

    title: str
    paper: str
    changes: str
    equation: str
    systems: tuple[int, ...] = ()
    state: Literal["none", "constant"] = "none"
    equals: tuple[Limit, ...] = ()
    deviations: str = "none"


def layer_part(slot: str, name: str) -> Callable[[Part], Part]:
    """Class decorator: `@layer_part("mix", "delta")`. The class carries a `card: LayerCard` and is a frozen dataclass
    of knobs, derived from the base class of its slot."""

    def add(cls: Part) -> Part:
        if not isinstance(getattr(cls, "card", None), LayerCard):
            raise HeadwiseError(f"layer part '{name}' has no card; add a class field `card = LayerCard(...)`")
        if not issubclass(cls, Knobs):
            raise HeadwiseError(f"layer part '{name}' checks no knobs; derive it from the base class of its slot")
        if holder := next((other for other in SLOTS if other != slot and name in LAYER_PARTS[other]), None):
            raise HeadwiseError(f"layer part name '{name}' is taken by a part of '{holder}'; choose another name")
        cls.part, cls.name = slot, name  # type: ignore[attr-defined]
        LAYER_PARTS[slot].add(name, cls)
        return cls

    return add


def feed_part(name: str) -> Callable[[Part], Part]:
    """Class decorator of what follows attention: `@feed_part("experts")`, derived from `headwise.layers.feeds.Feed`."""

    def add(cls: Part) -> Part:
        if not isinstance(getattr(cls, "card", None), LayerCard) or not issubclass(cls, Knobs):
            raise HeadwiseError(f"feed part '{name}' has no card or checks no knobs; derive it from layers.feeds.Feed")
        cls.part, cls.name = "feed", name  # type: ignore[attr-defined]
        FEEDS.add(name, cls)
        return cls

    return add


def parse_feed(text: str) -> Any:
    """The feed part of a text such as "experts(4, top=2)"; RecipeError names the word and the fix."""
    call = read_call(text, 'write it like "experts(4, top=2)"')
    return with_settings(among(FEEDS.all(), call.name, "feed part"), call)


def all_layer_parts() -> dict[str, type]:
    """Every part by name, in the order of the slots."""
    return {name: cls for slot in SLOTS for name, cls in LAYER_PARTS[slot].all().items()}


def build_part(call: Call) -> Any:
    """The part that a call names, with its knobs set; errors name the part, the knob and what is known."""
    return with_settings(among(all_layer_parts(), call.name, "layer part", "headwise layers"), call)
