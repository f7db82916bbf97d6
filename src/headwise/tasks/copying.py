"""Copying: a passage with a name that is to be said again, and words that repeat without a mark."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar, Literal

from headwise.errors import ContextError
from headwise.knobs import Ge, Le
from headwise.models.embedded.tasks import PASSAGE, PASSAGE_COPY, PASSAGE_END, draw_tag
from headwise.tasks.base import Ask, Few, Item, Space, Task, register
from headwise.tasks.haystack import SENTENCE_END, book, buried, running
from headwise.tasks.ruler import vocabulary
from headwise.tasks.scores import leading_words

LEAST_WORDS = 16  # of an induction


@dataclass(frozen=True)
class Copied(Task):
    """Something to copy, then a text up to the context's length, then the start of the copy.

    Scored by the share of words that come right before the first wrong one.
    """

    family: ClassVar[str] = "copying"
    source: ClassVar[str] = "own"

    def score(self, ask: Ask, output: str) -> float:
        return leading_words(ask.expected[0], output)

    def _before_text(self, room: Space, rng: Random, told: str, asks: tuple[Ask, ...]) -> Item:
        text = buried(room.after(told), running(book(self.split), rng, room.context), [], [], asks)
        return Item(f"{told}\n{text}", asks)


@register
@dataclass(frozen=True)
class CopyPassage(Copied):
    """Named passages; the question asks for a copy of one, and opens it.

    passages: how many there are, each is asked for. words: of a passage. body: "words" drawn at random, or "novel".
    """

    name: ClassVar[str] = "copy_passage"
    passages: Few = 2
    words: Few = 12
    body: Literal["words", "novel"] = "words"

    def item(self, room: Space, rng: Random, number: int) -> Item:
        told, asks = "", []
        for place in range(self.passages):
            tag, words = draw_tag(rng), self._words(rng)
            told += PASSAGE.format(tag=tag) + " ".join(words) + PASSAGE_END.format(tag=tag)
            opening = PASSAGE_COPY.format(tag=tag) + " ".join(words[:2])
            asks.append(room.ask(opening, " " + " ".join(words[2:]), offered=0, depth=place / self.passages / 8))
        return self._before_text(room, rng, told.lstrip(), tuple(asks))

    def _words(self, rng: Random) -> list[str]:
        if self.body == "words":
            return rng.sample(vocabulary(), self.words)
        text = running(book(self.split), rng, 4 * self.words)
        return text.split()[: self.words]


@register
@dataclass(frozen=True)
class CopyText(CopyPassage):
    """Named passages of the novel."""

    name: ClassVar[str] = "copy_text"
    body: Literal["words", "novel"] = "novel"


@register
@dataclass(frozen=True)
class Induction(Copied):
    """Random words at the start of a text; some of them in a row are said again and the next are to follow.

    words: in all. asks: places asked about. given, wanted: words said again, words to follow.
    """

    name: ClassVar[str] = "induction"
    source: ClassVar[str] = "induction heads, 2209.11895, section on prefix matching; own form"
    words: Annotated[int, Ge(LEAST_WORDS), Le(4096)] = 64
    asks: Few = 8
    given: Few = 4
    wanted: Few = 3

    def item(self, room: Space, rng: Random, number: int) -> Item:
        drawn = rng.sample(vocabulary(), self.words)
        count = room.half(lambda size: " ".join(drawn[:size]), (LEAST_WORDS, self.words))
        words, row = drawn[:count], self.given + self.wanted
        if row >= count:
            raise ContextError(f"{row} words in a row do not fit {count} words; give a larger context or fewer words")
        asks = []
        for start in rng.sample(range(count - row), min(self.asks, count - row)):
            said, next_ones = words[start : start + self.given], words[start + self.given : start + row]
            depth = start / count / 2
            asks.append(room.ask(" " + " ".join(said), " " + " ".join(next_ones), depth=depth))
        return self._before_text(room, rng, " ".join(words) + ".", tuple(asks))


@register
@dataclass(frozen=True)
class RepeatedText(Copied):
    """The start of an earlier sentence of the text is said again; its next words are to follow.

    asks: sentences asked about. given, wanted: words said again, words to follow.
    """

    name: ClassVar[str] = "repeated_text"
    asks: Few = 8
    given: Few = 8
    wanted: Few = 4

    def item(self, room: Space, rng: Random, number: int) -> Item:
        text = running(book(self.split), rng, room.context)
        row = self.given + self.wanted
        longest = Ask("\n" + text[: 12 * self.given], (), room.tokens(text[: 12 * self.wanted]) + 8)
        document = buried(room, text, [], [], [longest])
        starts = [m.end() for m in SENTENCE_END.finditer(document) if len(document[m.end() :].split()) > row]
        asks = []
        for start in sorted(rng.sample(starts, min(self.asks, len(starts)))):
            words = document[start:].split()[:row]
            prompt = "\n\n" + " ".join(words[: self.given])
            expected = " " + " ".join(words[self.given :])
            asks.append(room.ask(prompt, expected, depth=start / len(document)))
        return Item(document, tuple(asks))
