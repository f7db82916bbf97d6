"""The decoders: ways to choose the next token by more than one look at the text, a file of `faithful/decoders/` each.
To add one, add one file.

Declared here, below methods and models, so that lists and documentation name a decoder without putting it to work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from headwise.errors import RecipeError
from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room
from headwise.sentence import read_call

if TYPE_CHECKING:
    import torch

    from headwise.faithful.looks import Looks

EXAMPLE = 'write it like "decore(alpha=1.0, heads=16)"'


@dataclass(frozen=True)
class DecoderCard:
    """What a decoder does, for people. paper: title, number, section. costs: what its looks cost, by new token.
    deviations: where it differs from the paper or its code. systems: rows of the list of published systems that it
    stands for, or for a part of."""

    title: str
    paper: str
    costs: str
    deviations: str
    systems: tuple[int, ...] = ()


class Decoder(Knobs, ABC):
    """A way to choose the next token, as a sentence names it: a frozen dataclass of its knobs.

    needs: what it looks at beside the logits: "context" (the prompt's mark of that name), "attention" (of the first
    look), "exits" (what early layers would say), "again" (second looks at the newest token). neutral: the setting at
    which greedy decoding is what it is without the decoder.
    """

    name: ClassVar[str]  # given by `register`
    card: ClassVar[DecoderCard]
    needs: ClassVar[frozenset[str]]
    neutral: ClassVar[str]

    def prepare(self, looks: Looks) -> None:  # most have nothing to do
        """Called before a text is read: measure or refuse what has to do with the model."""

    @abstractmethod
    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        """The logarithms of the next token's probabilities [b, vocab], of the model's logits [b, vocab]; each row's
        probabilities sum to 1."""


DECODERS: Room[type[Decoder]] = Room("decoder", "headwise.faithful.decoders")
Kind = TypeVar("Kind", bound=type[Decoder])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: `@register("decore")` makes a decoder known."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        DECODERS.add(name, cls)
        return cls

    return add


def decoder(sentence: str) -> Decoder:
    """The decoder of a phrase, a decoder's name with its knobs. RecipeError naming the word and the fix."""
    call = read_call(sentence, EXAMPLE)
    made: Decoder = with_settings(DECODERS.get(call.name), call)
    return made


def listed_heads(named: str) -> tuple[tuple[int, int], ...]:
    """The heads of "12.3 14.0": layer and query head, with spaces between. RecipeError for anything else."""
    found = []
    for word in named.split():
        layer, dot, head = word.partition(".")
        if not (dot and layer.isascii() and layer.isdigit() and head.isascii() and head.isdigit()):
            raise RecipeError(
                f"'{word}' is no head; write heads as layer.head with spaces between, such as '12.3 14.0'"
            )
        found.append((int(layer), int(head)))
    return tuple(found)
