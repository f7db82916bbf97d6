"""Needles in a haystack: facts planted in a text at known depths, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, ClassVar, Literal, TypeAlias
from uuid import UUID

from headwise.knobs import Ge, Le, Word
from headwise.models.embedded.tasks import Fact, draw_fact
from headwise.tasks.base import Ask, Few, Item, Space, Task, register
from headwise.tasks.haystack import buried, hay
from headwise.tasks.scores import share_found

PREFACE = "Some facts are hidden in the text below. Read it with care: you will be asked about one of them.\n\n"
Key: TypeAlias = Literal["words", "uuids"]
Value: TypeAlias = Literal["any", "numbers", "uuids"]
Template: TypeAlias = Literal["small", "instruct"]
MOST_DISTRACTORS = 20_000  # other keys than there are would be looked for in vain


@dataclass(frozen=True)
class Needles(Task):
    """Facts "The {key} is {value}." between the sentences of a haystack.

    keys: different keys planted. values: values that every key asked about is given, in sentences of their own.
    queries: keys asked about. depths: steps of the grid from start to end that a needle asked about alone goes through
    from item to item; several are spread evenly, and what is not asked about lies anywhere.
    haystack: "novel", "noise", "needles" (other keys only, as many as fit), or a text file's path.
    key: "words" or "uuids". value: "any" (numbers or words), "numbers" or "uuids".
    template: "small" opens the answer and asks for one value at a time; "instruct" tells what to do and asks for
    everything at once.
    """

    family: ClassVar[str] = "retrieval"
    source: ClassVar[str] = "RULER, 2404.06654, section 3; the facts are the embedded model's own"

    keys: Few = 1
    values: Annotated[int, Ge(1), Le(8)] = 1
    queries: Few = 1
    depths: Few = 5
    haystack: Word = "novel"
    key: Key = "words"
    value: Value = "any"
    template: Template = "small"

    def conflict(self) -> str | None:
        if self.queries > self.keys:
            return f"{self.queries} queries of {self.keys} keys: give no more queries than keys"
        return None

    def item(self, room: Space, rng: Random, number: int) -> Item:
        facts = self._facts(rng, self.keys)
        depths = self._depths(rng, number)
        values = [[fact, *(self._same(rng, fact) for _ in range(self.values - 1))] for fact in facts[: self.queries]]
        told = [one for group in values for one in group] + facts[self.queries :]
        places = [depth if i == 0 else rng.random() for depth in depths for i in range(self.values)]
        places += [rng.random() for _ in facts[self.queries :]]
        preface = PREFACE if self.template == "instruct" else ""
        space = room.after(preface)
        if self.haystack == "needles":
            item = self._among_needles(space, rng, list(zip(told, places, strict=True)), values)
        else:
            asks = self._asks(room, values, depths, self.keys)
            text = hay(self.haystack, self.split, rng, room.context)
            item = Item(buried(space, text, [fact.sentence for fact in told], places, asks), asks)
        return Item(preface + item.document, item.asks)

    def score(self, ask: Ask, output: str) -> float:
        return share_found(ask.expected, output) if self._all_at_once else super().score(ask, output)

    @property
    def _all_at_once(self) -> bool:
        return self.template == "instruct" or self.values > 1

    def _depths(self, rng: Random, number: int) -> list[float]:
        """Of the needles asked about: a single one goes through the grid, several are spread evenly and shuffled."""
        if self.queries == 1:
            return [(number % self.depths) / (self.depths - 1) if self.depths > 1 else 0.5]
        spread = [(place + rng.random()) / self.queries for place in range(self.queries)]
        return rng.sample(spread, self.queries)

    def _facts(self, rng: Random, count: int) -> list[Fact]:
        found: dict[str, Fact] = {}
        while len(found) < count:
            fact = self._fact(rng)
            found.setdefault(fact.key, fact)
        return list(found.values())

    def _fact(self, rng: Random) -> Fact:
        """One that has the kinds of key and value asked for."""
        while True:
            fact = draw_fact(rng, self.held)
            if self.value == "any" or fact.value.isdigit():
                break
        if self.key == "uuids":
            fact = _keyed(f"access code of {_uuid(rng)}", fact.value)
        return _keyed(fact.key, _uuid(rng)) if self.value == "uuids" else fact

    def _same(self, rng: Random, fact: Fact) -> Fact:
        """Another value of the same key."""
        while True:
            other = self._fact(rng)
            if other.value != fact.value and other.value.isdigit() == fact.value.isdigit():
                return Fact(fact.key, fact.opening, other.value, fact.ask)

    def _among_needles(
        self, room: Space, rng: Random, told: list[tuple[Fact, float]], values: list[list[Fact]]
    ) -> Item:
        """Other facts, a line each, with those of `told` at their places; the other keys are not asked for."""
        asked, most = {fact.key for fact, _ in told}, min(MOST_DISTRACTORS, room.context // 6)
        others: dict[str, str] = {}
        while len(others) < most:
            fact = self._fact(rng) if self.key == "uuids" else draw_fact(rng, held=False)
            if fact.key not in asked:
                fact = _keyed(fact.key, _uuid(rng)) if self.value == "uuids" else fact
                others.setdefault(fact.key, fact.sentence)
        sentences, depths = list(others.values()), [place for _, place in told[:: self.values]][: self.queries]

        def made(count: int) -> Item:
            lines = sentences[:count]
            for fact, place in sorted(told, key=lambda pair: -pair[1]):
                lines.insert(round(place * count), fact.sentence)
            return Item("\n".join(lines), self._asks(room, values, depths, len(lines)))

        return room.fill(made, (1, most))

    def _asks(self, room: Space, values: list[list[Fact]], depths: list[float], offered: int) -> tuple[Ask, ...]:
        if self.template == "instruct":
            return (self._whole_ask(room, values, depths, offered),)
        asks = []
        for group, depth in zip(values, depths, strict=True):
            answers = [fact.answer for fact in group]
            ask = room.ask(self._prompt(group[0]), *answers, offered=offered, depth=depth)
            limit = sum(room.tokens(one) + 2 for one in answers) if self.values > 1 else ask.limit
            asks.append(replace(ask, limit=limit))
        return tuple(asks)

    def _prompt(self, fact: Fact) -> str:
        return fact.question

    def _whole_ask(self, room: Space, values: list[list[Fact]], depths: list[float], offered: int) -> Ask:
        """One question for all values of all keys asked about."""
        names = ", of the ".join(group[0].key for group in values)
        answers = [fact.answer for group in values for fact in group]
        limit = sum(room.tokens(one) + room.tokens(f" The {group[0].key} is") for group in values for one in answers)
        prompt = (
            f"\n\nQuestion: What does the text above say of the {names}? Name every value.\n"
            "Answer: According to the text,"
        )
        return Ask(prompt, tuple(answers), limit, depths[0], 1 / offered if offered > 1 else 0.0)


def _keyed(key: str, value: str) -> Fact:
    return Fact(key, f"The {key} is", value, f"What is the {key}?")


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


@register
@dataclass(frozen=True)
class NiahSingle(Needles):
    """One fact in a text."""

    name: ClassVar[str] = "niah_single"


@register
@dataclass(frozen=True)
class NiahMultikey(Needles):
    """One fact asked about, the others have other keys."""

    name: ClassVar[str] = "niah_multikey"
    keys: Few = 8


@register
@dataclass(frozen=True)
class NiahMultivalue(Needles):
    """One key with several values, all of which are asked for; scored by the share that is named."""

    name: ClassVar[str] = "niah_multivalue"
    values: Annotated[int, Ge(1), Le(8)] = 4


@register
@dataclass(frozen=True)
class NiahMultiquery(Needles):
    """Several facts, all asked about."""

    name: ClassVar[str] = "niah_multiquery"
    keys: Few = 8
    queries: Few = 8


@register
@dataclass(frozen=True)
class Restated(Needles):
    """Several facts, each to be said again in a sentence that goes on from the text: no question is put."""

    name: ClassVar[str] = "restated"
    source: ClassVar[str] = "own"
    keys: Few = 8
    queries: Few = 8

    def _prompt(self, fact: Fact) -> str:
        return fact.restated(Random(fact.key))


@register
@dataclass(frozen=True)
class Passkey(Needles):
    """One number to remember in repeated noise."""

    name: ClassVar[str] = "passkey"
    source: ClassVar[str] = "2305.16300, section 4.2; in the words of a fact"
    haystack: Word = "noise"
    value: Value = "numbers"

    def _fact(self, rng: Random) -> Fact:
        while True:
            fact = super()._fact(rng)
            if self.key == "uuids" or fact.key.startswith("pass code"):
                return fact


@register
@dataclass(frozen=True)
class FiveTurns(Needles):
    """A conversation of five questions, each answered truly before the next is put; all ask about the same text.

    The first question asks about the end of the text and the last about its start.
    """

    name: ClassVar[str] = "five_turns"
    family: ClassVar[str] = "recall"
    source: ClassVar[str] = "own"
    keys: Few = 5
    queries: Few = 5

    def _depths(self, rng: Random, number: int) -> list[float]:
        return [1 - (turn + rng.random()) / self.queries for turn in range(self.queries)]

    def _asks(self, room: Space, values: list[list[Fact]], depths: list[float], offered: int) -> tuple[Ask, ...]:
        asks, said = [], ""
        for (fact, *_), depth in zip(values, depths, strict=True):
            asks.append(room.ask(said + fact.question, fact.answer, offered=offered, depth=depth))
            said += fact.question + fact.answer
        return tuple(asks)
