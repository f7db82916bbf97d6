"""Perplexity of a book's own words after as much of it as the context holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from headwise.errors import ContextError
from headwise.tasks.base import OPENING, Count, Likelihood, Many, Space, Stretch, register
from headwise.tasks.haystack import CHARACTERS, SENTENCE_END, beginnings, book

WORD_END = re.compile(r"\w(?=\W)")


@register
@dataclass(frozen=True)
class BookPerplexity(Likelihood):
    """A stretch of a book and its next tokens; run at several contexts, it gives perplexity by position.

    path: a text file, the shipped novel where empty. predicted: most tokens of the continuation.
    """

    name: ClassVar[str] = "book_perplexity"
    family: ClassVar[str] = "text"
    source: ClassVar[str] = "own; perplexity of books by position is usual since 2108.12409"
    path: str = ""
    predicted: Many = 256

    def texts(self, tokens: Count, context: int, count: int, seed: int) -> list[Stretch]:
        text = book(self.split, self.path)
        whole, left = tokens(text), context - OPENING - self.predicted
        if left < self.predicted or whole < context + self.predicted:
            raise ContextError(
                f"{self.name}: a context of {context} does not fit {self.predicted} tokens after at least as many, or "
                f"the book of {whole}; give one from {2 * self.predicted + OPENING} to {whole - self.predicted}, or a "
                "longer book with path"
            )
        last = (whole - context - self.predicted) / whole * len(text)
        starts = [0, *(match.end() for match in SENTENCE_END.finditer(text) if match.end() < last)]
        return [
            self._stretch(Space(tokens, context), text[self.rng(seed, number).choice(starts) :].lstrip(), left)
            for number in range(count)
        ]

    def _stretch(self, room: Space, text: str, left: int) -> Stretch:
        text = text[: CHARACTERS * room.context + 1000]
        stops, document = beginnings(text, [], [])
        place = room.longest(document, (0, len(stops) - 1), left)
        end = stops[place]
        after = text[end : end + CHARACTERS * self.predicted]
        ends = [match.end() for match in WORD_END.finditer(after)]
        size = room.longest(lambda place: after[: ends[place]], (0, len(ends) - 1), self.predicted)
        return Stretch(document(place), after[: ends[size]])
