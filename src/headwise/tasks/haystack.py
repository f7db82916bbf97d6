"""Text to hide things in, and the one builder of documents with sentences planted in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from headwise.assets import novel
from headwise.errors import ContextError, HeadwiseError
from headwise.files import read_text
from headwise.models.embedded import tasks
from headwise.tasks.base import Ask, Space, Split

SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)")
CLAUSE_END = re.compile(r"[.!?;:,][\"')\]]*(?=\s)")
# Five short sentences of no content, as in the passkey test (2305.16300) and RULER's noise (2404.06654).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
CHARACTERS = 8  # of a text at most for one token of it


def wordlist(text: str) -> tuple[str, ...]:
    """The words of a long string."""
    return tuple(text.split())


def book(split: Split, path: str = "") -> str:
    """The text a split may read: of the shipped novel, book one for tests and book two for tuning; of a user's own
    text file, its first three fifths and the rest."""
    if not path:
        text = novel()
        cut = text.index("BOOK TWO")
    else:
        text = read_text(Path(path), HeadwiseError)
        cut = 3 * len(text) // 5
    return text[:cut] if split == "test" else text[cut:]


def running(text: str, rng: Random, tokens: int) -> str:
    """At least `tokens` tokens of `text` from one of its sentences on, starting over where it ends."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    if len(ends) < 2:
        raise HeadwiseError(
            f"a text of {len(text)} characters has {len(ends)} sentences to begin at; give a longer one"
        )
    start = rng.choice(ends[: -(-len(ends) * 9 // 10)]) + 1
    again = 1 + CHARACTERS * tokens // len(text)
    return (text[start:].lstrip() + "\n\n" + (text + "\n\n") * again)[: CHARACTERS * tokens + 1000]


def hay(kind: str, split: Split, rng: Random, tokens: int) -> str:
    """Text for a haystack of `tokens` tokens. kind: "novel", "noise", or the path of a text file."""
    if kind == "noise":
        return NOISE * (1 + CHARACTERS * tokens // len(NOISE))
    return running(book(split, "" if kind == "novel" else kind), rng, tokens)


def beginnings(
    text: str, sentences: Sequence[str], depths: Sequence[float], cut: re.Pattern[str] = CLAUSE_END
) -> tuple[list[int], Callable[[int], str]]:
    """(characters of `text` that may be used, the document of each such beginning): the sentences stand between those
    of the text, near their depths (0 start, 1 end). The text is cut at a `cut`, after its first sentence."""
    first = SENTENCE_END.search(text)
    ends = [match.end() for match in cut.finditer(text) if first is not None and match.end() >= first.end()]
    if not ends:
        raise ContextError(f"a text of {len(text)} characters has no whole sentence to plant behind; give a longer one")

    def document(place: int) -> str:
        # plant() sees a sentence end by the space after it, which is not part of the document.
        end = ends[place]
        return tasks.plant(text[: end + 1], sentences, depths)[:-1]

    return ends, document


def buried(room: Space, text: str, sentences: Sequence[str], depths: Sequence[float], asks: Sequence[Ask]) -> str:
    """The longest beginning of `text` with the sentences planted in it that fits `room` beside the longest ask."""
    ends, document = beginnings(text, sentences, depths)
    return document(room.longest(document, (0, len(ends) - 1), room.left(asks)))
