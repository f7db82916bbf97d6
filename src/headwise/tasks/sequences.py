"""Sequences of ids to train small models on: what is asked stands in the sequence itself, as labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from headwise.knobs import Knobs, Positive
from headwise.registry import with_settings
from headwise.rooms import Room, among
from headwise.sentence import read_call

IGNORED = -100  # label of a position that is not scored
EXAMPLE = 'write it like "mqar(length=64, pairs=8)"'


class SequenceTask(Knobs, ABC):
    """Makes sequences of ids with labels; a frozen dataclass, whose fields are the task's settings."""

    name: ClassVar[str]
    vocabulary: int
    length: int

    @abstractmethod
    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, labels), each [length] int64; a label is what follows at its place, elsewhere IGNORED."""


Kind = TypeVar("Kind", bound=type[SequenceTask])
SEQUENCES: Room[type[SequenceTask]] = Room("sequence task", "headwise.tasks")


def sequence_task(name: str) -> Callable[[Kind], Kind]:
    """Class decorator of a sequence task: makes it known by its name."""

    def add(cls: Kind) -> Kind:
        cls.name = name
        SEQUENCES.add(name, cls)
        return cls

    return add


def parse_sequence_task(text: str) -> SequenceTask:
    """The task of a text such as "copy(length=32)"; RecipeError names the word and the fix."""
    call = read_call(text, EXAMPLE)
    made: SequenceTask = with_settings(among(SEQUENCES.all(), call.name, "sequence task"), call)
    return made


def marked(task: SequenceTask, every: int) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """The task's sequences with an id of its own, the first that the task does not have, after so many tokens each;
    what landmark attention finds blocks by. Marks are never asked for."""

    def sequence(seed: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, labels = task.sequence(seed)
        places = np.arange(every, len(inputs) + 1, every)
        return np.insert(inputs, places, task.vocabulary), np.insert(labels, places, IGNORED)

    return sequence


@sequence_task("copy")
@dataclass(frozen=True)
class Copy(SequenceTask):
    """Random ids, a zero, and the same ids again, each of which is asked for.

    vocabulary: ids. length: tokens, even.
    """

    vocabulary: Positive = 64
    length: Positive = 64

    def conflict(self) -> str | None:
        if self.length % 2 or self.vocabulary < 3:
            return f"{self.length} tokens of {self.vocabulary} ids: give an even length and 3 ids or more"
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        half = self.length // 2
        data = np.random.default_rng(seed).integers(1, self.vocabulary, half)
        labels = np.full(self.length, IGNORED, np.int64)
        labels[half:] = data
        return np.concatenate((data, [0], data[:-1])), labels


@sequence_task("induction")
@dataclass(frozen=True)
class Induction(SequenceTask):
    """Random ids in which a zero stands somewhere before another id; at the end the zero comes again, and that id is
    asked for.

    vocabulary: ids. length: tokens.
    """

    vocabulary: Positive = 64
    length: Positive = 64

    def conflict(self) -> str | None:
        if self.length < 4 or self.vocabulary < 3:
            return f"{self.length} tokens of {self.vocabulary} ids: give 4 tokens and 3 ids or more"
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(seed)
        inputs = draw.integers(1, self.vocabulary, self.length)
        place = draw.integers(0, self.length - 2)
        inputs[place] = inputs[-1] = 0
        labels = np.full(self.length, IGNORED, np.int64)
        labels[-1] = inputs[place + 1]
        return inputs, labels
