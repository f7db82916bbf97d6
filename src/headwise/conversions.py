"""The conversions: ways to make another model out of one that is there, a file of `convert/ways/` each. To add one,
add one file.

Declared here, below models, so that lists and documentation name a conversion without putting it to work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room, among
from headwise.sentence import phrase, read_call

if TYPE_CHECKING:
    from headwise.seams.transformers.looked import Looked
    from headwise.seams.transformers.weights import Decoder

EXAMPLE = 'write it like "mla(rank=128, rope=64)"'


@dataclass(frozen=True)
class ConversionCard:
    """What a conversion does, for people. title: in a sentence. paper: its title, number and section. exact: at which
    setting, and of which models, what comes out computes the same, in words. loads: what class comes out.
    deviations: where it differs from the paper or its code. systems: rows of the list of published systems that it
    stands for, or for a part of. leaves_out: what of these rows it does not do."""

    title: str
    paper: str
    exact: str
    loads: str
    deviations: str = "none"
    systems: tuple[int, ...] = ()
    leaves_out: str = ""


class Conversion(Knobs, ABC):
    """A way to convert, as a sentence names it: a frozen dataclass of its knobs."""

    name: ClassVar[str]  # given by `register`
    card: ClassVar[ConversionCard]
    equal_heads: ClassVar[bool] = False  # whether it is exact only of models whose KV heads are all equal

    @classmethod
    @abstractmethod
    def exact(cls, source: Decoder) -> Conversion:
        """The setting at which what comes out computes what the source does."""

    @abstractmethod
    def check(self, source: Decoder) -> None:
        """Refuse what cannot be made of this model, by name and with the fix, before any work starts."""

    @abstractmethod
    def build(self, source: Decoder, looked: Looked) -> Any:
        """The model that comes out, in float32. looked: what the source does as it reads some texts."""

    @abstractmethod
    def cache_numbers(self, source: Decoder) -> int:
        """Numbers that a token adds to the cache of what comes out, over all layers."""

    def __str__(self) -> str:
        return phrase(self)


CONVERSIONS: Room[type[Conversion]] = Room("conversion", "headwise.convert.ways")
Kind = TypeVar("Kind", bound=type[Conversion])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: `@register("gqa")` makes a conversion known."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        CONVERSIONS.add(name, cls)
        return cls

    return add


def conversion(sentence: str) -> Conversion:
    """The conversion of a phrase, its name with its knobs. RecipeError naming the word and the fix."""
    call = read_call(sentence, EXAMPLE)
    made: Conversion = with_settings(among(CONVERSIONS.all(), call.name, "conversion"), call)
    return made
