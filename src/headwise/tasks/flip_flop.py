"""Flip-flop: a bit is written now and then, what is to be ignored comes between, and reading gives the last one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwise.knobs import Positive, Share
from headwise.tasks.sequences import IGNORED, SequenceTask, sequence_task

WRITE, READ, IGNORE, ZERO = range(4)  # ids; a bit is ZERO or the id after it


@sequence_task("flip_flop")
@dataclass(frozen=True)
class FlipFlop(SequenceTask):
    """Pairs of an instruction and a bit (Liu et al., 2306.00946, section 3). The first pair writes; the bit of every
    pair that reads is that of the last pair that wrote, and is asked for.

    ignored: share of the pairs between that neither write nor read; the others are halved. length: tokens, even.
    """

    vocabulary: Positive = 5
    length: Positive = 64
    ignored: Share = 0.8

    def conflict(self) -> str | None:
        if self.length % 2 or self.length < 4 or self.vocabulary != 5:
            return f"{self.length} tokens of {self.vocabulary} ids: give an even length of 4 or more, and 5 ids"
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(seed)
        pairs, rest = self.length // 2, (1 - self.ignored) / 2
        asked = draw.choice(3, pairs, p=(rest, rest, self.ignored))
        asked[0], asked[-1] = WRITE, READ
        bits = draw.integers(0, 2, pairs) + ZERO
        written = np.maximum.accumulate(np.where(asked == WRITE, np.arange(pairs), 0))
        bits = np.where(asked == READ, bits[written], bits)
        labels = np.full(self.length, IGNORED, np.int64)
        labels[0::2] = np.where(asked == READ, bits, IGNORED)
        return np.stack((asked, bits), 1).reshape(-1), labels
