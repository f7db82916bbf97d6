"""A tale in chapters, made of sentences: retrieval, multi-hop and aggregation in plain language."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from headwise.models.embedded import words
from headwise.tasks.base import Ask, Item, Space, Task, register

SOURCE = "The Sparse Frontier, 2504.17768, section on tasks (story {}); own story"
HERO = "Arion"
MOODS = ("in the rain", "at dawn", "after a long ride", "late in the evening", "on a cold day", "without much hope")
TALK = (
    "They spoke of the harvest and of the price of grain.",
    "They shared bread and said little.",
    "They argued about the shortest way over the hills.",
    "They laughed about old times until the lamp went out.",
    "They watched the road, but nobody came.",
    "They played a game of dice, and neither won.",
)
LEAST = 4  # chapters


@dataclass(frozen=True)
class Chapter:
    """What happens: where the hero goes, whom he meets, what he buys (or nothing)."""

    place: str
    person: str
    bought: str
    mood: str
    talk: str

    def text(self, number: int) -> str:
        """The chapter's sentences under its number."""
        buys = f" {HERO} bought the {self.bought}." if self.bought else f" {HERO} bought nothing."
        return (
            f"Chapter {number}. {HERO} came to the {self.place} {self.mood}. There he met {self.person}. {self.talk}"
            f"{buys}"
        )


def _distinct(rng: Random, first: tuple[str, ...], second: tuple[str, ...], count: int) -> list[str]:
    """Pairs of words, none twice where there are enough of them."""
    pairs = [f"{one} {other}" for one in first for other in second]
    return [pair for _ in range(1 + count // len(pairs)) for pair in rng.sample(pairs, len(pairs))][:count]


@dataclass(frozen=True)
class Story(Task):
    """As many chapters as the context holds."""

    family: ClassVar[str] = "reading"

    def item(self, room: Space, rng: Random, number: int) -> Item:
        count = max(LEAST, room.context // 20)
        places = _distinct(rng, words.ADJECTIVES, words.NOUNS, count)
        people = _distinct(rng, words.FIRST_NAMES, words.LAST_NAMES, count)
        things = _distinct(rng, words.MATERIALS, words.THINGS, count)
        chapters = [
            Chapter(place, person, thing, rng.choice(MOODS), rng.choice(TALK))
            for place, person, thing in zip(places, people, things, strict=True)
        ]
        chosen = rng.getrandbits(64)

        def item(size: int) -> Item:
            own, asks = self._asks(room, Random(chosen), chapters[:size])
            return Item("\n\n".join(chapter.text(i) for i, chapter in enumerate(own, 1)), asks)

        return room.fill(item, (LEAST, count))

    @abstractmethod
    def _asks(self, room: Space, rng: Random, chapters: list[Chapter]) -> tuple[list[Chapter], tuple[Ask, ...]]:
        """The chapters as they are told, and what is asked about them."""


@register
@dataclass(frozen=True)
class StoryRetrieval(Story):
    """Where the hero went, whom he met and what he bought, in three chapters."""

    name: ClassVar[str] = "story_retrieval"
    source: ClassVar[str] = SOURCE.format("retrieval")

    def _asks(self, room: Space, rng: Random, chapters: list[Chapter]) -> tuple[list[Chapter], tuple[Ask, ...]]:
        size = len(chapters)
        one, two, three = rng.sample(range(size), 3)
        told = (
            (one, f"where did {HERO} go?", f"{HERO} came to the", chapters[one].place),
            (two, f"whom did {HERO} meet?", f"{HERO} met", chapters[two].person),
            (three, f"what did {HERO} buy?", f"{HERO} bought the", chapters[three].bought),
        )
        asks = tuple(
            room.ask(
                f"\n\nQuestion: In chapter {i + 1}, {question}\nAnswer: In chapter {i + 1}, {opening}",
                f" {value}",
                offered=size,
                depth=i / (size - 1),
            )
            for i, question, opening, value in told
        )
        return chapters, asks


@register
@dataclass(frozen=True)
class StoryMultihop(Story):
    """What the hero bought last before a given thing, with chapters between in which he bought nothing."""

    name: ClassVar[str] = "story_multihop"
    source: ClassVar[str] = SOURCE.format("multi-hop")

    def _asks(self, room: Space, rng: Random, chapters: list[Chapter]) -> tuple[list[Chapter], tuple[Ask, ...]]:
        later = rng.randrange(1, len(chapters))
        earlier = max(0, later - rng.randint(1, 3))
        own = [
            Chapter(one.place, one.person, "" if earlier < i < later else one.bought, one.mood, one.talk)
            for i, one in enumerate(chapters)
        ]
        thing = own[later].bought
        prompt = (
            f"\n\nQuestion: What was the last thing that {HERO} bought before the {thing}?\n"
            f"Answer: Before the {thing}, {HERO} bought the"
        )
        offered = sum(1 for one in own if one.bought) - 1
        depth = earlier / (len(own) - 1)
        return own, (room.ask(prompt, f" {own[earlier].bought}", offered=offered, depth=depth),)


@register
@dataclass(frozen=True)
class StoryFiltering(Story):
    """The chapters in which the hero bought nothing; scored by intersection over union."""

    name: ClassVar[str] = "story_filtering"
    family: ClassVar[str] = "aggregation"
    source: ClassVar[str] = SOURCE.format("filtering")

    def _asks(self, room: Space, rng: Random, chapters: list[Chapter]) -> tuple[list[Chapter], tuple[Ask, ...]]:
        idle = sorted(rng.sample(range(len(chapters)), min(3, len(chapters) // 2)))
        own = [
            Chapter(one.place, one.person, "" if i in idle else one.bought, one.mood, one.talk)
            for i, one in enumerate(chapters)
        ]
        expected = tuple(f" {i + 1}" for i in idle)
        prompt = (
            f"\n\nQuestion: In which {len(idle)} chapters did {HERO} buy nothing? Give their numbers.\n"
            "Answer: In the chapters"
        )
        limit = sum(room.tokens(f" and {one},") for one in expected) + 3
        return own, (Ask(prompt, expected, limit, None, _guessed(len(idle), len(own))),)

    def score(self, ask: Ask, output: str) -> float:
        wanted, found = {one.strip() for one in ask.expected}, _numbers(output)
        return len(wanted & found) / len(wanted | found)


def _numbers(text: str) -> set[str]:
    """The whole numbers of the first line."""
    return {word.strip(".,;") for word in text.strip().partition("\n")[0].split() if word.strip(".,;").isdigit()}


def _guessed(right: int, among: int) -> float:
    """About what as many numbers drawn at random get: the expected intersection over its union."""
    same = right * right / among
    return same / (2 * right - same)
