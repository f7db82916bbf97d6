"""A task of the tests: facts in a stretch of the novel, asked for as the embedded model was taught."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from headwise.assets import novel
from headwise.models.embedded import tasks
from headwise.tasks.base import Count, Item, Space, Task


@dataclass(frozen=True)
class Recall(Task):
    """facts: how many are planted and asked for."""

    name: ClassVar[str] = "test_recall"
    family: ClassVar[str] = "recall"
    source: ClassVar[str] = "own"
    facts: int = 4

    def item(self, room: Space, rng: Random, number: int) -> Item:
        facts = tasks.draw_facts(rng, self.facts, held=True)
        depths = [(i + 0.5) / self.facts for i in range(self.facts)]
        text = novel()[2000 + 9000 * number :]
        asks = [room.ask(fact.question, fact.answer, depth=at) for fact, at in zip(facts, depths, strict=True)]

        def document(end: int) -> str:
            return tasks.plant(text[:end], [fact.sentence for fact in facts], depths)

        return Item(document(room.longest(document, (500, 5 * room.context), room.left(asks))), tuple(asks))


class Long(Recall):
    """A defect: its documents do not fit."""

    name: ClassVar[str] = "test_long"

    def items(self, tokens: Count, context: int, count: int, seed: int) -> list[Item]:
        return super().items(tokens, context + 40, count, seed)
