"""The pruners: ways to leave image tokens out of a prompt, before the decoder or between its layers, a file of
`vision/pruners/` each. To add one, add one file.

Declared here, below models, so that lists and documentation name a pruner without putting it to work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from headwise.knobs import Knobs
from headwise.registry import with_settings
from headwise.rooms import Room
from headwise.sentence import phrase, read_call

if TYPE_CHECKING:
    import torch

    from headwise.vision.seen import Seen

EXAMPLE = 'write it like "vtc_cls(keep=0.25)"'


@dataclass(frozen=True)
class PrunerCard:
    """What a pruner does, for people. title: in a sentence. paper: its title, number and section. deviations: where it
    differs from the paper or its code. systems: rows of the list of published systems that it stands for, or for a
    part of. leaves_out: what of these rows it does not do."""

    title: str
    paper: str
    deviations: str = "none"
    systems: tuple[int, ...] = ()
    leaves_out: str = ""


class Pruner(Knobs, ABC):
    """A way to leave image tokens out, as a sentence names it: a frozen dataclass of its knobs. everything: the setting
    that leaves out nothing."""

    name: ClassVar[str]  # given by `register`
    card: ClassVar[PrunerCard]
    everything: ClassVar[str]

    @abstractmethod
    def stay(self, seen: Seen) -> torch.Tensor | None:
        """Which of the image tokens that are there stay, bool [images], before the decoder's layer `seen.layer`; None:
        all. Asked before every layer; text stays in any case."""

    def counts(self, images: int, layers: int) -> list[int] | None:
        """How many of `images` tokens reach each layer; None where that depends on what is read."""
        return None

    def __str__(self) -> str:
        return phrase(self)


PRUNERS: Room[type[Pruner]] = Room("pruner", "headwise.vision.pruners")
Kind = TypeVar("Kind", bound=type[Pruner])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: `@register("vtc_cls")` makes a pruner known."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        PRUNERS.add(name, cls)
        return cls

    return add


def pruner(sentence: str) -> Pruner:
    """The pruner of a phrase, its name with its knobs. RecipeError naming the word and the fix."""
    call = read_call(sentence, EXAMPLE)
    made: Pruner = with_settings(PRUNERS.get(call.name), call)
    return made


def left(share: float, images: int) -> int:
    """How many of `images` tokens a share of them is: at least 1."""
    return max(1, round(share * images))


def from_layer(layer: int, kept: int, images: int, layers: int) -> list[int]:
    """By layer, the image tokens that reach it where all but `kept` leave before the layer numbered `layer`."""
    return [images if number < layer else kept for number in range(layers)]
