"""What a drafter is: it guesses how a text goes on. Drafters are found in `drafters/`; to add one, add one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch

from headwise.errors import HeadwiseError
from headwise.forms import Tree
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
    """Guessed tokens: a chain, each after the one before, or a tree, in which several may come next.

    probabilities: [tokens, vocab], with which each was drawn; None where they are sure of themselves, as those that are
    looked up are. Of several that follow the same token each was drawn after those before it were, by probabilities
    that may depend on these. Speculative sampling needs them to keep the distribution.
    parents: by token, the place of the one that it follows, which comes before it, or -1 where it follows the text;
    None for a chain. The best guesses come first: where there is no room, or trees cannot be read, the last ones go.
    """

    tokens: Sequence[int] = ()
    probabilities: torch.Tensor | None = None
    parents: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.probabilities is not None and len(self.probabilities) != len(self.tokens):
            raise HeadwiseError(
                f"a draft of {len(self.tokens)} tokens has the probabilities of {len(self.probabilities)}; give one "
                "row for each token"
            )
        if self.parents is None:
            return
        if len(self.parents) != len(self.tokens) or any(not -1 <= one < i for i, one in enumerate(self.parents)):
            raise HeadwiseError(
                f"a draft of {len(self.tokens)} tokens says that they follow {list(self.parents)}; give for each the "
                "place of one before it, or -1"
            )
        if len(set(zip(self.parents, self.tokens, strict=True))) < len(self.tokens):
            raise HeadwiseError("a draft names a token twice as the next of the same one; name it once")

    @property
    def tree(self) -> Tree:
        """How the text's last token, the first node, and the draft's tokens follow each other."""
        return Tree((-1, *range(len(self.tokens))) if self.parents is None else (-1, *(one + 1 for one in self.parents)))

    @property
    def chain(self) -> Draft:
        """The best guesses that follow each other: of several next tokens the first."""
        if self.parents is None:
            return self
        path: list[int] = []
        for place, parent in enumerate(self.parents):
            if parent == (path[-1] if path else -1):
                path.append(place)
        return replace(self._of(path), parents=None)

    def within(self, depth: int, tokens: int) -> Draft:
        """What of it is in the first `tokens` and follows the text by at most `depth`."""
        if self.parents is None:
            return self._of(range(min(depth, tokens, len(self.tokens))))
        depths = self.tree.depths[1:]
        return self._of([place for place, own in enumerate(depths[:tokens]) if own <= depth])

    def _of(self, places: Sequence[int]) -> Draft:
        """Some of its tokens, with every one also those that it follows."""
        numbers = {-1: -1} | {old: new for new, old in enumerate(places)}
        return Draft(
            [self.tokens[place] for place in places],
            None if self.probabilities is None else self.probabilities[list(places)],
            None if self.parents is None else [numbers[self.parents[place]] for place in places],
        )


@dataclass(frozen=True)
class Written:
    """What a proposer may look at: `ids [n]`, the prompt and what follows it in one batch row, without padding.

    most: tokens one after the other that can be verified now. nodes: tokens of a tree in all. distribution: how the model's logits become the probabilities by which tokens
    are drawn; None in greedy decoding.
    """

    row: int
    ids: torch.Tensor
    most: int
    nodes: int
    distribution: Distribution | None = None


class Proposer(ABC):
    """A drafter at work on one generation."""

    @abstractmethod
    def propose(self, written: Written) -> Draft:
        """Guess how a row goes on, by at most `written.most` tokens one after the other and `written.nodes` in all; no
        token where there is nothing to go by."""

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
