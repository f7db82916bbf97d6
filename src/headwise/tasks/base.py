"""What a task is: items of text with questions whose answers are known, at any length and for any tokenizer."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from random import Random
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from headwise.errors import ContextError, HeadwiseError, did_you_mean
from headwise.knobs import Ge, Knobs, Le
from headwise.rooms import Room

Count = Callable[[str], int]  # tokens of a text, the opening tokens of a sequence not counted
Split = Literal["test", "tune"]
Few: TypeAlias = Annotated[int, Ge(1), Le(64)]  # questions, passages, facts of one document
Many: TypeAlias = Annotated[int, Ge(1), Le(4096)]  # tokens, pairs, records
FAMILIES = ("retrieval", "recall", "copying", "tracing", "aggregation", "reading", "few-shot", "generation", "text")
OPENING = 2  # tokens a tokenizer may put at the start of a sequence
SPARE = 3  # tokens of an answer beyond its own: a model may cut it finer


@dataclass(frozen=True)
class Ask:
    """One question put after an item's document, on a fork of its cache: no eviction has seen it.

    prompt: text that follows the document. expected: the strings that count as right, by the task's score.
    limit: new tokens at most. depth: place of what is asked for, 0 (start) to 1 (end), or None.
    chance: the score of a guess among the answers that the document or the prompt offers; 0 where none are offered.
    """

    prompt: str
    expected: tuple[str, ...]
    limit: int
    depth: float | None = None
    chance: float = 0.0

    def right(self, output: str) -> bool:
        """Whether `output` begins with an expected value, and the value ends there."""
        found = output.strip()
        values = (one.strip().rstrip(".") for one in self.expected)
        return any(found.startswith(value) and not found[len(value) : len(value) + 1].isalnum() for value in values)


@dataclass(frozen=True)
class Item:
    """A document of the task and what is asked about it.

    examples: characters [first, last) of the document that belong together, a worked example or a row of a table;
    marked for methods that keep such things whole.
    """

    document: str
    asks: tuple[Ask, ...]
    examples: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Stretch:
    """A text and its true continuation."""

    document: str
    continuation: str


@dataclass(frozen=True)
class Space:
    """The space of an item: `context` tokens for the opening tokens, the document, one prompt and its answer.

    taken: tokens of the document that are written already.
    """

    tokens: Count
    context: int
    taken: int = 0

    def after(self, told: str) -> Space:
        """The space that is left after `told`, at the start of the document."""
        return replace(self, taken=self.taken + self.tokens(told) + SPARE)

    def ask(self, prompt: str, *expected: str, offered: int = 0, depth: float | None = None) -> Ask:
        """A question whose limit is its longest answer. offered: how many answers a guess could choose from."""
        limit = max(self.tokens(one) for one in expected) + SPARE
        return Ask(prompt, expected, limit, depth, 1 / offered if offered > 1 else 0.0)

    def asked(self, asks: Sequence[Ask]) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(self.tokens(ask.prompt) + ask.limit for ask in asks)

    def left(self, asks: Sequence[Ask]) -> int:
        """Tokens left for the rest of the document."""
        return self.context - self.taken - OPENING - self.asked(asks)

    def longest(self, make: Callable[[int], str], sizes: tuple[int, int], left: int) -> int:
        """The largest size, from `sizes[0]` to `sizes[1]`, whose text takes at most `left` tokens.

        Raises ContextError with a context that is worth a try.
        """
        return self._largest(lambda size: self.tokens(make(size)), sizes, left)

    def half(self, make: Callable[[int], str], sizes: tuple[int, int]) -> int:
        """The largest size whose text takes at most half the context, so that other text can follow."""
        return self._largest(lambda size: 2 * self.tokens(make(size)), sizes, self.context)

    def fill(self, make: Callable[[int], Item], sizes: tuple[int, int]) -> Item:
        """The item of the largest size that fits whole; for items whose questions change with their size."""

        def used(size: int) -> int:
            item = make(size)
            return self.tokens(item.document) + self.asked(item.asks)

        return make(self._largest(used, sizes, self.context - self.taken - OPENING))

    def _largest(self, cost: Callable[[int], int], sizes: tuple[int, int], most: int) -> int:
        low, high = sizes
        least = cost(low)
        if least > most:
            raise ContextError(
                f"at the least it takes {least} tokens where a context of {self.context} leaves {max(most, 0)}; give a "
                f"context of {self.context + least - most} or more"
            )
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle) <= most else (low, middle - 1)
        return low


@dataclass(frozen=True, kw_only=True)
class Made(Knobs, ABC):
    """What tasks with answers and tasks of likelihood share. A frozen dataclass: its fields are the task's settings.

    name: as users write it. version: rises whenever the same seed would give other items or other scores.
    family: the room of the default table, one of FAMILIES. source: paper and section, or "own".

    split: "test" for figures that are shown, "tune" for anything a method is fitted on. The two share no text of the
    shipped novel and no key of a planted fact.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    family: ClassVar[str]
    source: ClassVar[str]
    split: Split = "test"

    def settings(self) -> dict[str, Any]:
        """The task's fields, for the record of a result."""
        return dict(vars(self))

    @property
    def held(self) -> bool:
        """Whether keys are of those that the embedded model was not trained on."""
        return self.split == "test"

    def rng(self, seed: int, number: int) -> Random:
        """The source of chance of one item. The context is no part of it: lengths are compared on equal facts."""
        return Random(f"{self.name}/{self.version}/{self.split}/{seed}/{number}")


@dataclass(frozen=True)
class Task(Made):
    """Makes items from a seed and scores answers."""

    @abstractmethod
    def item(self, room: Space, rng: Random, number: int) -> Item:
        """Item `number`, drawn with `rng`, that fits into `room`; raises ContextError where none does."""

    def items(self, tokens: Count, context: int, count: int, seed: int) -> list[Item]:
        """`count` items whose document, longest question and answer fit `context` tokens, the same for the same seed.

        Raises ContextError, naming a larger context to try, when the task does not fit.
        """
        try:
            return [self.item(Space(tokens, context), self.rng(seed, number), number) for number in range(count)]
        except ContextError as error:
            raise ContextError(f"{self.name}: {error}") from None

    def score(self, ask: Ask, output: str) -> float:
        """How right `output` is, 0 to 1: by default whether it begins with an expected value, and ends there."""
        return float(ask.right(output))


@dataclass(frozen=True)
class Likelihood(Made):
    """Makes texts from a seed; judged by the perplexity of the continuation, lower is better."""

    @abstractmethod
    def texts(self, tokens: Count, context: int, count: int, seed: int) -> list[Stretch]:
        """`count` texts whose document and continuation together fit `context` tokens, the same for the same seed."""


def stretches(texts: Sequence[str], gap: int) -> tuple[tuple[int, int], ...]:
    """Characters [first, last) of each text, as they stand one after the other with `gap` characters between."""
    ends = list(accumulate(len(text) + gap for text in texts))
    return tuple((end - gap - len(text), end - gap) for text, end in zip(texts, ends, strict=True))


def chance(items: Sequence[Item]) -> float:
    """The mean score that guessing gets on these items."""
    asks = [ask for item in items for ask in item.asks]
    return sum(ask.chance for ask in asks) / len(asks)


def digest(made: Sequence[Item | Stretch]) -> str:
    """A hash of everything that is read and asked, to be stored with a result."""
    text = json.dumps([asdict(one) for one in made], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(what: str, value: str, known: Sequence[str]) -> None:
    """Refuse a setting of a task that is none of `known`."""
    if value not in known:
        raise HeadwiseError(f"{what} is '{value}'; {did_you_mean(value, known)}")


Kind = TypeVar("Kind", bound=type[Made])
TASKS: Room[type[Made]] = Room("task", "headwise.tasks")


def register(cls: Kind) -> Kind:
    """Class decorator of a task: makes it known by its name."""
    check(f"{cls.name}: family", cls.family, FAMILIES)
    TASKS.add(cls.name, cls)
    return cls
