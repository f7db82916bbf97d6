"""The drafters: ways to guess how a text goes on, a file of `decoding/drafters/` each. To add one, add one file.

Declared here, below methods and models, so that lists and documentation name a drafter without putting it to work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from headwise.knobs import Knobs
from headwise.rooms import Room

if TYPE_CHECKING:
    from headwise.decoding.base import Proposer


@dataclass(frozen=True)
class DrafterCard:
    """What a drafter does, for people. paper: title, number, section. systems: rows of the list of published systems
    that it stands for, or for a part of. deviations: where it differs from the paper."""

    title: str
    paper: str
    deviations: str
    systems: tuple[int, ...] = ()


class Drafter(Knobs, ABC):
    """A way to guess, as a sentence names it: a frozen dataclass of its knobs."""

    name: ClassVar[str]  # given by `register`
    card: ClassVar[DrafterCard]

    @abstractmethod
    def start(self, model: Any) -> Proposer:
        """Go to work for a generation with `model`; refused where it cannot draft for this model."""


DRAFTERS: Room[type[Drafter]] = Room("drafter", "headwise.decoding.drafters")
Kind = TypeVar("Kind", bound=type[Drafter])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: `@register("lookup")` makes a drafter known."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        DRAFTERS.add(name, cls)
        return cls

    return add
