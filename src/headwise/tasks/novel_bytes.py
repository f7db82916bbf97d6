"""The shipped novel in bytes, for small language models: what is asked of every byte is the next one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from headwise.knobs import Positive
from headwise.models.host_training import HELD
from headwise.tasks.base import Split
from headwise.tasks.haystack import book
from headwise.tasks.sequences import SequenceTask, sequence_task


@cache
def written(split: Split) -> np.ndarray:
    """The bytes [n] of the part of the novel that a split may read."""
    return np.frombuffer(book(split).encode(), dtype=np.uint8).astype(np.int64)


@sequence_task("novel_bytes")
@dataclass(frozen=True)
class NovelBytes(SequenceTask):
    """A stretch of the novel, each of whose bytes asks for the next. Sequences that are trained on are of book two,
    those that are held out of book one.

    vocabulary: 256 bytes. length: of a stretch, in bytes.
    """

    vocabulary: Positive = 256
    length: Positive = 128

    def conflict(self) -> str | None:
        if self.vocabulary < 256:
            return f"vocabulary={self.vocabulary} is less than a byte has; give 256"
        longest = min(len(written("tune")), len(written("test"))) - 2
        if self.length > longest:
            return f"length={self.length} is longer than either book; give {longest} at most"
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        text = written("test" if seed >= HELD else "tune")
        start = np.random.default_rng(seed).integers(len(text) - self.length)
        piece = text[start : start + self.length + 1]
        return piece[:-1], piece[1:]
