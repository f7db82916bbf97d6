"""Selective copying: ids among blanks, to be said again in their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwise.knobs import Positive
from headwise.tasks.sequences import IGNORED, SequenceTask, sequence_task

BLANK, ASK = 0, 1


@sequence_task("selective_copy")
@dataclass(frozen=True)
class SelectiveCopy(SequenceTask):
    """A few ids lie at random places among blanks; at the end, each place of a row of marks asks for the next of them
    (Mamba, 2312.00752, section 4.1.1).

    vocabulary: ids, of which two are the blank and the mark. length: tokens. items: ids to copy.
    """

    vocabulary: Positive = 16
    length: Positive = 64
    items: Positive = 4

    def conflict(self) -> str | None:
        if self.length < 2 * self.items or self.vocabulary < 4:
            return (
                f"{self.items} items in {self.length} tokens of {self.vocabulary} ids: give twice as many tokens as "
                "items, and 4 ids or more"
            )
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(seed)
        room = self.length - self.items
        items = draw.integers(2, self.vocabulary, self.items)
        inputs = np.full(self.length, BLANK, np.int64)
        inputs[np.sort(draw.choice(room, self.items, replace=False))] = items
        inputs[room:] = ASK
        labels = np.full(self.length, IGNORED, np.int64)
        labels[room:] = items
        return inputs, labels
