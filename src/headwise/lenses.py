"""The lenses: what can be measured of every attention head of a model, a file of `lens/figures/` each.

Declared here, below methods and models, so that lists and documentation name a lens without running one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headwise.rooms import Room

if TYPE_CHECKING:
    import torch

    from headwise.lens.scene import Scene
    from headwise.lens.sight import Sight

Progress = Callable[[int, int], None]  # steps done, steps in all
# What a lens of attention may need beside queries and keys: "one" input that both are of, keys that are "words",
# token ids to draw at "random", and attention that foretells the "next" token.
NEEDS = frozenset({"one", "words", "random", "next"})


@dataclass(frozen=True)
class LensCard:
    """What a reader of a figure needs to know. tells: in a sentence, what a head of a high figure does.

    range: between what the figure lies, with its unit. paper: where it comes from, and which part of it.
    systems: rows of the list of published systems that it stands for, or for a part of. deviations: where it differs.
    """

    title: str
    tells: str
    range: str
    paper: str
    systems: tuple[int, ...] = ()
    deviations: str = "none"


@dataclass(frozen=True)
class AttentionLens:
    """A figure of one layer's attention over a text: `of` gives [query heads], from what a `Look` can be asked.

    All lenses of a text share one forward. random: the text is random tokens repeated, and not the one that is given.
    needs: of NEEDS, what an attention has to have; any decoder's over its own text has all of them.
    """

    card: LensCard
    of: Callable[[Sight], torch.Tensor]
    random: bool
    needs: frozenset[str]


@dataclass(frozen=True)
class ModelLens:
    """A figure for which a model is run, or its weights are read, in its own way: `of` gives [layers, query heads], not
    a number for heads that a layer does not have. costly: minutes, so that it is taken only where it is asked for."""

    card: LensCard
    of: Callable[[Scene, Progress], torch.Tensor]
    costly: bool


Lens = AttentionLens | ModelLens
LENSES: Room[Lens] = Room("lens", "headwise.lens.figures")


def attention_lens(
    name: str, card: LensCard, *, random: bool = False, needs: frozenset[str] = frozenset()
) -> Callable[[Callable[[Sight], torch.Tensor]], Callable[[Sight], torch.Tensor]]:
    """Function decorator: makes a figure of a layer's attention known by its name."""

    def add(of: Callable[[Sight], torch.Tensor]) -> Callable[[Sight], torch.Tensor]:
        LENSES.add(name, AttentionLens(card, of, random, needs))
        return of

    return add


def model_lens(
    name: str, card: LensCard, *, costly: bool = False
) -> Callable[[Callable[[Scene, Progress], torch.Tensor]], Callable[[Scene, Progress], torch.Tensor]]:
    """Function decorator: makes a figure that takes more than a look at attention known by its name."""

    def add(of: Callable[[Scene, Progress], torch.Tensor]) -> Callable[[Scene, Progress], torch.Tensor]:
        LENSES.add(name, ModelLens(card, of, costly))
        return of

    return add
