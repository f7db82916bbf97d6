"""Key-value lines, then a text, then keys to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar, Literal

from headwise.knobs import Ge, Le
from headwise.models.embedded.tasks import RECALL, Records, draw_records
from headwise.tasks.base import Ask, Few, Item, Space, Task, register, stretches
from headwise.tasks.haystack import book, buried, running

MOST = 100  # of a list: there are not many more held-out keys of one kind


@dataclass(frozen=True)
class Listed(Task):
    """Records, a text up to the context's length, and questions about some of the records.

    records: how many, fewer where half the context holds no more. asks: records asked about. template: "small" or
    "instruct", the wording of the question.
    """

    family: ClassVar[str] = "recall"
    records: Annotated[int, Ge(2), Le(4096)] = 48
    asks: Few = 8
    template: Literal["small", "instruct"] = "small"

    def item(self, room: Space, rng: Random, number: int) -> Item:
        drawn = draw_records(rng, min(self.records, MOST), self.held)
        order = rng.getrandbits(64)

        def lines_of(size: int) -> list[tuple[str, str]]:
            return self._lines(Random(order), drawn.pairs[:size])

        def text_of(size: int) -> str:
            return Records(tuple(lines_of(size))).text.lstrip()

        count = room.half(text_of, (2, len(drawn.pairs)))
        lines, listed = lines_of(count), text_of(count)
        chosen = rng.sample(range(count), min(self.asks, count))
        asks = tuple(self._ask(room, lines, drawn.pairs[index][0]) for index in chosen)
        text = running(book(self.split), rng, room.context)
        rows = listed.split("\n")  # the first is the heading
        document = f"{listed}\n\n{buried(room.after(listed), text, [], [], asks)}"
        return Item(document, asks, stretches(rows, 1)[1:])

    def _lines(self, rng: Random, pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        return list(pairs)

    def _ask(self, room: Space, lines: list[tuple[str, str]], key: str) -> Ask:
        """The last line of the key is the right one."""
        place = max(i for i, (one, _) in enumerate(lines) if one == key)
        prompt = f"{RECALL}\n{key}:"
        if self.template == "instruct":
            prompt = f"\n\nQuestion: What does the last record of '{key}' say in the list above?\nAnswer: {key}:"
        return room.ask(prompt, f" {lines[place][1]}", offered=self._offered(lines), depth=place / len(lines) / 2)

    def _offered(self, lines: list[tuple[str, str]]) -> int:
        return len(lines)


@register
@dataclass(frozen=True)
class KvRecall(Listed):
    """Every key has one record."""

    name: ClassVar[str] = "kv_recall"
    source: ClassVar[str] = "key-value retrieval of 2307.03172, section 3; the lines are the embedded model's own"


@register
@dataclass(frozen=True)
class KvLatest(Listed):
    """Every key has two records of different values; the later one counts."""

    name: ClassVar[str] = "kv_latest"
    source: ClassVar[str] = "own"
    records: Annotated[int, Ge(2), Le(4096)] = 24

    def _lines(self, rng: Random, pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        before = values[1:] + values[:1]  # every value is also an outdated one, of another key
        told = list(zip(keys, before, strict=True))
        rng.shuffle(told)
        return told + list(pairs)

    def _offered(self, lines: list[tuple[str, str]]) -> int:
        return 2
