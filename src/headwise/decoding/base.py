"""What a drafter is: it guesses how a text goes on. Drafters are found in `drafters/`; to add one, add one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from headwise.errors import HeadwiseError
from headwise.knobs import Knobs
from headwise.rooms import Room

Distribution = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids [1, n], logits [1, vocab] -> [1, vocab]


@dataclass(frozen=True)
class Card:
    """What a drafter does, for people. paper: title, number, section. systems: its rows in the list of systems.
    deviations: where it differs from the paper."""

    title: str
    paper: str
    deviations: str
    systems: tuple[int, ...] = ()


@dataclass(frozen=True)
class Draft:
    """Guessed tokens, each after the one before.

    probabilities: [tokens, vocab], with which each was drawn; None where they are sure of themselves, as those that are
    looked up are. Speculative sampling needs them to keep the distribution.
    """

    tokens: Sequence[int] = ()
    probabilities: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.probabilities is not None and len(self.probabilities) != len(self.tokens):
            raise HeadwiseError(
                f"a draft of {len(self.tokens)} tokens has the probabilities of {len(self.probabilities)}; give one "
                "row for each token"
            )


@dataclass(frozen=True)
class Written:
    """What a proposer may look at: `ids [n]`, the prompt and what follows it in one batch row, without padding.

    most: tokens that can be verified now. distribution: how the model's logits become the probabilities by which tokens
    are drawn; None in greedy decoding.
    """

    row: int
    ids: torch.Tensor
    most: int
    distribution: Distribution | None = None


class Proposer(ABC):
    """A drafter at work on one generation."""

    @abstractmethod
    def propose(self, written: Written) -> Draft:
        """Guess how a row goes on, by at most `written.most` tokens; no token where there is nothing to go by."""

    def finish(self, row: int, ids: torch.Tensor) -> None:  # noqa: B027  # most have nothing to do
        """Told what a row has become in the end, ids [n]."""


class Drafter(Knobs, ABC):
    """A way to guess, as a sentence names it: a frozen dataclass of its knobs."""

    name: ClassVar[str]  # given by `register`
    card: ClassVar[Card]

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
