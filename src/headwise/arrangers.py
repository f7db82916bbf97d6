"""The arrangers: ways to order, choose or shorten documents before a question is asked of them, a file of
`context/arrangers/` each. To add one, add one file.

Declared here, below models, so that lists and documentation name an arranger without putting it to work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room
from headwise.sentence import phrase, read_calls

if TYPE_CHECKING:
    from headwise.context.asked import Arranged, Asked

EXAMPLE = 'write it like "attention_sorting(rounds=3)" or "bm25(keep=5) | attn_rank"'


@dataclass(frozen=True)
class ArrangerCard:
    """What an arranger does, for people. title: in a sentence. paper: its title, number and section.

    systems: rows of the list of published systems that it stands for, or for a part of. deviations: where it differs
    from the paper or its code. leaves_out: what of these rows it does not do. passes: forwards of the model it takes.
    """

    title: str
    paper: str
    passes: str
    deviations: str = "none"
    systems: tuple[int, ...] = ()
    leaves_out: str = ""


class Arranger(Knobs, ABC):
    """A way to arrange documents, as a sentence names it: a frozen dataclass of its knobs."""

    name: ClassVar[str]  # given by `register`
    card: ClassVar[ArrangerCard]

    @abstractmethod
    def arrange(self, asked: Asked) -> Arranged:
        """What is to be read in the place of the documents that were given: the same in another order, some of them,
        or some of their sentences."""

    def __str__(self) -> str:
        return phrase(self)


ARRANGERS: Room[type[Arranger]] = Room("arranger", "headwise.context.arrangers")
Kind = TypeVar("Kind", bound=type[Arranger])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: `@register("bm25")` makes an arranger known."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        ARRANGERS.add(name, cls)
        return cls

    return add


def arrangers(sentence: str) -> tuple[Arranger, ...]:
    """The arrangers of a sentence such as "bm25(keep=5) | attn_rank", which work one after the other. RecipeError names
    the word and the fix."""
    return tuple(with_settings(ARRANGERS.get(call.name), call) for call in read_calls(sentence, EXAMPLE))
