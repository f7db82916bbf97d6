"""RULER's thirteen kinds of task with its published settings, in this project's own words."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import pi
from random import Random
from typing import Annotated, ClassVar

from headwise.assets import novel
from headwise.errors import ContextError
from headwise.knobs import Ge, Gt, Le, Word
from headwise.tasks.base import Ask, Few, Item, Space, Task, register
from headwise.tasks.haystack import buried, hay
from headwise.tasks.needle import Key, Needles, Template, Value
from headwise.tasks.scores import share_found

SOURCE = "RULER, 2404.06654, table 2 and its synthetic.yaml; own wording"
LEAST_OTHERS = 5  # words of a list that come seldom
LONG = 4096  # tokens: below it RULER repeats words less often


@register
@dataclass(frozen=True)
class Single1(Needles):
    """One number in noise."""

    name: ClassVar[str] = "ruler_niah_single_1"
    source: ClassVar[str] = SOURCE
    haystack: Word = "noise"
    value: Value = "numbers"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Single2(Needles):
    """One number in a text."""

    name: ClassVar[str] = "ruler_niah_single_2"
    source: ClassVar[str] = SOURCE
    value: Value = "numbers"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Single3(Needles):
    """One uuid in a text."""

    name: ClassVar[str] = "ruler_niah_single_3"
    source: ClassVar[str] = SOURCE
    value: Value = "uuids"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Multikey1(Needles):
    """One of four numbers in a text."""

    name: ClassVar[str] = "ruler_niah_multikey_1"
    source: ClassVar[str] = SOURCE
    keys: Few = 4
    value: Value = "numbers"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Multikey2(Needles):
    """One number among nothing but other needles."""

    name: ClassVar[str] = "ruler_niah_multikey_2"
    source: ClassVar[str] = SOURCE
    haystack: Word = "needles"
    value: Value = "numbers"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Multikey3(Needles):
    """One uuid with a uuid for its key, among nothing but others of the kind."""

    name: ClassVar[str] = "ruler_niah_multikey_3"
    source: ClassVar[str] = SOURCE
    haystack: Word = "needles"
    key: Key = "uuids"
    value: Value = "uuids"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Multivalue(Needles):
    """Four numbers of one key."""

    name: ClassVar[str] = "ruler_niah_multivalue"
    source: ClassVar[str] = SOURCE
    values: Annotated[int, Ge(1), Le(8)] = 4
    value: Value = "numbers"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class Multiquery(Needles):
    """Four keys asked about at once."""

    name: ClassVar[str] = "ruler_niah_multiquery"
    source: ClassVar[str] = SOURCE
    keys: Few = 4
    queries: Few = 4
    value: Value = "numbers"
    template: Template = "instruct"


@register
@dataclass(frozen=True)
class VariableTracking(Task):
    """Assignments in noise, `VAR B = VAR A`; all variables that hold a given number are asked for.

    chains: numbers that are handed on. hops: how often each is.
    """

    name: ClassVar[str] = "ruler_vt"
    family: ClassVar[str] = "tracing"
    source: ClassVar[str] = SOURCE
    chains: Few = 1
    hops: Few = 4

    def item(self, room: Space, rng: Random, number: int) -> Item:
        names = self._names(rng, self.chains * (self.hops + 1))
        numbers = rng.sample(range(10_000, 100_000), self.chains)
        sentences, depths = [], []
        for chain, value in enumerate(numbers):
            own = names[chain * (self.hops + 1) : (chain + 1) * (self.hops + 1)]
            sentences += [f"VAR {own[0]} = {value}."]
            sentences += [f"VAR {new} = VAR {old}." for old, new in pairwise(own)]
            depths += sorted(rng.random() for _ in own)
        wanted = tuple(f" {one}" for one in names[: self.hops + 1])
        prompt = (
            f"\n\nQuestion: Which variables hold the value {numbers[0]} in the text above, directly or by way of "
            f"others? There are {len(wanted)}.\nAnswer: The variables that hold {numbers[0]} are"
        )
        limit = sum(room.tokens(one) + 2 for one in wanted)
        ask = Ask(prompt, wanted, limit, depths[0], 1 / self.chains if self.chains > 1 else 0.0)
        return Item(buried(room, hay("noise", self.split, rng, room.context), sentences, depths, [ask]), (ask,))

    def score(self, ask: Ask, output: str) -> float:
        return share_found(ask.expected, output)

    @staticmethod
    def _names(rng: Random, count: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < count:
            found["".join(rng.choices(string.ascii_uppercase, k=5))] = None
        return list(found)


@register
@dataclass(frozen=True)
class CommonWords(Task):
    """A numbered list of words, some of which come ten times as often as the others; those are asked for.

    common: words that come often, 30 times against 3, or 6 times against 1 in contexts below 4096 tokens.
    """

    name: ClassVar[str] = "ruler_cwe"
    family: ClassVar[str] = "aggregation"
    source: ClassVar[str] = SOURCE + ", without its example"
    common: Few = 10

    def item(self, room: Space, rng: Random, number: int) -> Item:
        often, seldom = (30, 3) if room.context >= LONG else (6, 1)
        words = rng.sample(vocabulary(), len(vocabulary()))
        wanted = words[: self.common]
        order = rng.getrandbits(64)

        def made(count: int) -> Item:
            listed = wanted * often + words[self.common : self.common + count] * seldom
            Random(order).shuffle(listed)
            text = " ".join(f"{i + 1}. {word}" for i, word in enumerate(listed))
            ask = self._ask(room, wanted, self.common + count)
            return Item(f"Some words of this list come often:\n{text}", (ask,))

        return room.fill(made, (LEAST_OTHERS, len(words) - self.common))

    def score(self, ask: Ask, output: str) -> float:
        return share_found(ask.expected, output)

    @staticmethod
    def _ask(room: Space, wanted: Sequence[str], offered: int) -> Ask:
        limit = sum(room.tokens(f" 10. {one}") for one in wanted)
        prompt = f"\n\nQuestion: Which {len(wanted)} words come most often in the list?\nAnswer: They are"
        return Ask(prompt, tuple(wanted), limit, None, len(wanted) / offered)


@register
@dataclass(frozen=True)
class FrequentWords(Task):
    """Made-up words, the k-th of them n * k^-alpha / zeta(alpha) times, the first one noise; the next three are asked.

    alpha: how fast words get rarer.
    """

    name: ClassVar[str] = "ruler_fwe"
    family: ClassVar[str] = "aggregation"
    source: ClassVar[str] = SOURCE
    alpha: Annotated[float, Gt(1), Le(8)] = 2.0

    def item(self, room: Space, rng: Random, number: int) -> Item:
        words = ["...", *("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(max(8, room.context // 50)))]
        order = rng.getrandbits(64)
        zeta = pi**2 / 6 if self.alpha == 2 else sum(k**-self.alpha for k in range(1, 100_000))

        def listed(size: int) -> list[str]:
            return [w for k, w in enumerate(words, 1) for _ in range(int(size * k**-self.alpha / zeta))]

        def document(size: int) -> str:
            text = listed(size)
            Random(order).shuffle(text)
            return "Count the made-up words of this text; the dots mean nothing:\n" + " ".join(text)

        prompt = "\n\nQuestion: Which three made-up words come most often in the text?\nAnswer: They are"
        limit = sum(room.tokens(" " + one) + 2 for one in words[1:4])
        size = room.longest(document, (40, room.context), room.left([Ask(prompt, (), limit)]))
        while int(size * 4**-self.alpha / zeta) == int(size * 5**-self.alpha / zeta):
            if size < 40:
                raise ContextError("the third and fourth word come equally often; give a larger context or less alpha")
            size -= 1  # the third and the fourth made-up word must not come equally often
        offered = len(set(listed(size))) - 1
        return Item(document(size), (Ask(prompt, tuple(words[1:4]), limit, None, 3 / offered),))

    def score(self, ask: Ask, output: str) -> float:
        return share_found(ask.expected, output)


@cache
def vocabulary() -> tuple[str, ...]:
    """Words of four to ten small letters that the shipped novel uses."""
    return tuple(sorted(set(re.findall(r"(?<!\w)[a-z]{4,10}(?!\w)", novel()))))
