"""Explanations: what says of each token of a prompt how much it counted for the next one, a file of
`lens/explanations/` each.

Declared here, below models, so that lists and documentation name an explanation without running one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headwise.rooms import Room

if TYPE_CHECKING:
    import torch

    from headwise.lens.prompt import Prompt


@dataclass(frozen=True)
class ExplanationCard:
    """What a reader of an explanation needs to know. tells: in a sentence, what a token of a high figure did.

    signed: whether a token that speaks against the answer has a figure below 0. takes: forwards of the model, and
    memory where it is more than that of reading. paper: where it comes from, and which part of it. systems: rows of
    the list of published systems that it stands for, or for a part of. deviations: where it differs.
    """

    title: str
    tells: str
    signed: bool
    takes: str
    paper: str
    systems: tuple[int, ...] = ()
    deviations: str = "none"


@dataclass(frozen=True)
class Explanation:
    """A figure of each token of a prompt: `of` gives float32 [n]."""

    card: ExplanationCard
    of: Callable[[Prompt], torch.Tensor]


EXPLANATIONS: Room[Explanation] = Room("explanation", "headwise.lens.explanations")
Of = Callable[["Prompt"], "torch.Tensor"]


def explanation(name: str, card: ExplanationCard) -> Callable[[Of], Of]:
    """Function decorator: makes an explanation known by its name."""

    def add(of: Of) -> Of:
        EXPLANATIONS.add(name, Explanation(card, of))
        return of

    return add
