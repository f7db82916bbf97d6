"""What may be done beside the task while a host is trained: the cards of hooks and their room, low enough for lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from headwise.errors import HeadwiseError
from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room, among
from headwise.sentence import read_calls

EXAMPLE = 'write it like "sigma_reparam" or "few_gates(0.01) | balance(0.01)"'
HOOKS: Room[type] = Room("training hook", "headwise.models.hooks")
Made = TypeVar("Made", bound=type)


@dataclass(frozen=True)
class HookCard:
    """What somebody who trains a layer needs to know of a hook.

    does: in a sentence. equation: the paper's, in its own letters. systems: rows of the list of published systems that
    it stands for. ablation: with which setting it does nothing. deviations: where it differs from the paper or its
    code, and which part of a row it does not stand for.
    """

    title: str
    paper: str
    does: str
    equation: str
    ablation: str
    systems: tuple[int, ...] = ()
    deviations: str = "none"


def training_hook(name: str) -> Callable[[Made], Made]:
    """Class decorator: `@training_hook("few_gates")`, of a frozen dataclass of knobs with a `card: HookCard`."""

    def add(cls: Made) -> Made:
        if not isinstance(getattr(cls, "card", None), HookCard) or not issubclass(cls, Knobs):
            raise HeadwiseError(
                f"training hook '{name}' has no card or checks no knobs; derive it from models.hooking.Hook"
            )
        cls.name = name  # type: ignore[attr-defined]
        HOOKS.add(name, cls)
        return cls

    return add


def parse_hooks(text: str) -> tuple[Any, ...]:
    """The hooks of a sentence such as "few_gates(0.01) | balance(0.01)"; "" is none. RecipeError names the word and
    the fix."""
    calls = read_calls(text, EXAMPLE) if text.strip() else []
    return tuple(with_settings(among(HOOKS.all(), call.name, "training hook"), call) for call in calls)
