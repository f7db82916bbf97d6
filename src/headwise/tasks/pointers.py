"""Pointers to follow twice, and objects that are the same or not: what one layer of plain attention finds hard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwise.knobs import Positive
from headwise.tasks.sequences import IGNORED, SequenceTask, sequence_task


@sequence_task("two_hop")
@dataclass(frozen=True)
class TwoHop(SequenceTask):
    """A permutation of `names`, one id for each pair of a name and the name it points to, in random order; then every
    name by an id of its own, of which the name two hops on is asked for.

    vocabulary: names squared and names once more: the ids of pairs, then those of questions. length: twice the names.
    """

    vocabulary: Positive = 42
    length: Positive = 12

    def conflict(self) -> str | None:
        names = self.length // 2
        if self.length % 2 or self.vocabulary != names * names + names or names < 3:
            return (
                f"{self.length} tokens of {self.vocabulary} ids: give an even length of 6 or more, and as many ids as "
                f"half of it squared and that half, {names * names + names}"
            )
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        draw, names = np.random.default_rng(seed), self.length // 2
        points = draw.permutation(names)
        told, asked = draw.permutation(names), draw.permutation(names)
        labels = np.full(self.length, IGNORED, np.int64)
        labels[names:] = points[points[asked]] + names * names
        return np.concatenate((told * names + points[told], asked + names * names)), labels


@sequence_task("same_different")
@dataclass(frozen=True)
class SameDifferent(SequenceTask):
    """Random objects; of each but the first is asked whether it is the same as the one before it, as half of them are.

    vocabulary: ids; the first two are the answers, different and same, the others objects. length: tokens.
    """

    vocabulary: Positive = 66
    length: Positive = 16

    def conflict(self) -> str | None:
        if self.length < 2 or self.vocabulary < 4:
            return f"{self.length} tokens of {self.vocabulary} ids: give 2 tokens and 4 ids or more"
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        draw, objects = np.random.default_rng(seed), self.vocabulary - 2
        same = draw.random(self.length) < 0.5
        steps = np.where(same, 0, draw.integers(1, objects, self.length))
        inputs = 2 + (draw.integers(objects) + steps.cumsum()) % objects
        labels = same.astype(np.int64)
        labels[0] = IGNORED
        return inputs, labels
