"""What the small vision-language model is asked to see what it sees and what it invents, on pictures it never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from headwise.errors import RecipeError, did_you_mean
from headwise.models.vlm.asked import IDS, KINDS, Question, lonely, opening, presence, question
from headwise.models.vlm.scenes import COLOURS, SHAPES, Scene, scene, usual_colour
from headwise.models.vlm.training import HELD

CLEAR, BLURRED = (0.05, 0.35), (0.35, 0.6)  # pixel noise: as in training, and beyond it


@dataclass(frozen=True, eq=False)
class Item:
    """A question about a picture. habit: the word that habit says and the picture does not; None: there is none."""

    scene: Scene
    question: Question
    habit: str | None

    @property
    def ids(self) -> Tensor:
        """The prompt [n]."""
        return torch.tensor([*opening(), *self.question.ids])

    @property
    def pixels(self) -> Tensor:
        """The picture [3, height, width]."""
        return torch.from_numpy(self.scene.pixels())


def seeing(first: int) -> Iterator[Item]:
    """Ordinary questions of one word of all kinds, about pictures such as those that were trained on."""
    for number in count(first):
        one = scene(number, CLEAR)
        yield Item(one, question(KINDS[number % len(KINDS)], one, np.random.default_rng([number, 3])), None)


def invented(first: int) -> Iterator[Item]:
    """Is there the shape that comes with one that is there? It is not, in blurred pictures; and in every second
    question a shape that is there is asked for, so that always saying no is half right."""
    for number in count(first):
        one = scene(number, BLURRED, habit=0)
        absent = lonely(one)
        if absent is None:
            continue
        asked = absent if number % 2 else one.things[0].shape
        yield Item(one, presence(one, asked), "yes" if number % 2 else None)


def repainted(first: int) -> Iterator[Item]:
    """What colour a shape is that has not its usual one, in blurred pictures."""
    for number in count(first):
        one = scene(number, BLURRED, habit=0)
        thing = one.things[number % len(one.things)]
        asked = Question("colour", f"what colour is the {SHAPES[thing.shape]} ?", COLOURS[thing.colour], thing.shape)
        yield Item(one, asked, COLOURS[usual_colour(thing.shape)])


TASKS: dict[str, Callable[[int], Iterator[Item]]] = {
    "seeing": seeing, "invented": invented, "repainted": repainted,
}  # fmt: skip


HALF = ("invented",)  # tasks of which habit misleads in every second question alone


def drawn(task: str, questions: int) -> list[Item]:
    """The questions of a task that has so many in which habit misleads, or so many in all where it has no say."""
    return items(task, questions * (2 if task in HALF else 1))


def items(task: str, questions: int, first: int = HELD) -> list[Item]:
    """So many questions of a task, from the picture numbered `first` on."""
    if task not in TASKS:
        raise RecipeError(f"no task is called '{task}'; {did_you_mean(task, TASKS)}")
    stream = TASKS[task](first)
    return [next(stream) for _ in range(questions)]


WORD_OF = {number: word for word, number in IDS.items()}
