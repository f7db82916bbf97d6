"""Multi-query associative recall: pairs, then each key once more, at gaps drawn from a power law."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

import numpy as np

from headwise.knobs import Ge, Le, Positive, PositiveWeight
from headwise.tasks.base import Ask, Few, Item, Space, Task, register
from headwise.tasks.ruler import vocabulary
from headwise.tasks.sequences import IGNORED, SequenceTask, sequence_task


@sequence_task("mqar")
@dataclass(frozen=True)
class Layout(SequenceTask):
    """Zoology's sequences of ids (2312.04927, appendix; the defaults are those of its `multiquery_ar`).

    vocabulary: ids; keys are of its first half without 0, values of its second half. length: tokens, even. pairs: keys.
    power: of the gaps' law, power * gap ** (power - 1), 1 is uniform. filled: random ids where nothing is asked.
    """

    vocabulary: Positive = 8192
    length: Positive = 64
    pairs: Positive = 8
    power: PositiveWeight = 0.01
    filled: bool = True

    def conflict(self) -> str | None:
        if self.length % 2 or 4 * self.pairs > self.length or self.vocabulary <= self.length:
            return (
                f"{self.pairs} pairs in {self.length} tokens of {self.vocabulary}: give an even length of at least 4 "
                "times the pairs, and a larger vocabulary than length"
            )
        return None

    def sequence(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, labels), each [length] int64; a label is the value that follows a query, elsewhere IGNORED."""
        draw = np.random.default_rng(seed)
        half, told = self.vocabulary // 2, 2 * self.pairs
        keys = 1 + draw.choice(half - 1, self.pairs, replace=False)
        values = half + draw.choice(self.vocabulary - half, self.pairs, replace=False)
        space = (self.length - told) // 2
        weights = self.power * np.arange(1, space + 1) ** (self.power - 1)
        gaps = draw.choice(space, self.pairs, replace=False, p=weights / weights.sum())
        inputs = draw.integers(0, self.vocabulary, self.length) if self.filled else np.zeros(self.length, np.int64)
        labels = np.full(self.length, IGNORED, np.int64)
        inputs[0:told:2], inputs[1:told:2] = keys, values
        inputs[told + 2 * gaps], labels[told + 2 * gaps] = keys, values
        return inputs, labels


@register
@dataclass(frozen=True)
class Mqar(Task):
    """Pairs of words, filled up with other words; each question repeats the words up to a key and asks for its value.

    pairs: keys of an item, fewer where half the context holds no more. asks: keys asked about.
    """

    name: ClassVar[str] = "mqar"
    family: ClassVar[str] = "recall"
    source: ClassVar[str] = "Zoology, 2312.04927, section 3; its ids as words"
    pairs: Annotated[int, Ge(2), Le(4096)] = 32
    asks: Few = 8

    def item(self, room: Space, rng: Random, number: int) -> Item:
        words = rng.sample(vocabulary(), len(vocabulary()))
        half = len(words) // 2
        pairs = min(self.pairs, half - 1)
        keys, values = words[:pairs], words[half : half + pairs]

        def listed_pairs(count: int) -> str:
            return " ".join(f"{key} {value}" for key, value in zip(keys[:count], values[:count], strict=True))

        count = room.half(listed_pairs, (2, pairs))
        others = words[pairs:half] + words[half + pairs :]
        filler = rng.choices(others, k=room.context)
        chosen = rng.sample(range(count), min(self.asks, count))
        asks = tuple(room.ask(f" {keys[i]}", f" {values[i]}", offered=count, depth=i / count / 2) for i in chosen)

        def document(size: int) -> str:
            return " ".join([listed_pairs(count), *filler[:size]])

        return Item(document(room.longest(document, (0, len(filler)), room.left(asks))), asks)

    def score(self, ask: Ask, output: str) -> float:
        return float(output.split()[:1] == ask.expected[0].split())
