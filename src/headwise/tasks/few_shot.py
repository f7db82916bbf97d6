"""Worked examples, as many as the context holds, then new problems of the kind: abilities that rest on the prompt."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from headwise.models.embedded import words
from headwise.tasks.base import Ask, Few, Item, Space, Task, register, stretches
from headwise.tasks.haystack import wordlist

SOURCE = "KVFundaBench, 2502.01941, section 3 ({}); there a data set, here made up"
THINGS = wordlist("apples pears coins books stamps buttons candles cups plums nails pens stones")
COUNTRIES = wordlist(
    "France/Paris Italy/Rome Spain/Madrid Germany/Berlin Austria/Vienna Portugal/Lisbon Ireland/Dublin Norway/Oslo "
    "Greece/Athens Egypt/Cairo Poland/Warsaw Russia/Moscow Japan/Tokyo China/Beijing Hungary/Budapest Sweden/Stockholm "
    "Denmark/Copenhagen Finland/Helsinki Cuba/Havana Peru/Lima Chile/Santiago Kenya/Nairobi Iraq/Baghdad Iran/Tehran"
)
# From light to heavy; what stands more than two places apart is compared.
BY_WEIGHT = wordlist("feather leaf coin spoon book brick chair piano car bus train ship")
LETTERS = "ABCD"
GAP = "\n\n"  # between examples


@dataclass(frozen=True)
class Shot:
    """A problem, its solution in words, and what the solution ends in."""

    problem: str
    steps: str
    answer: str

    @property
    def text(self) -> str:
        """Both, as an example."""
        return f"Problem: {self.problem}\nSolution: {self.steps}The answer is {self.answer}."


@dataclass(frozen=True)
class FewShot(Task):
    """Problems with solutions that end in "The answer is ...". Scored by what follows these words.

    asks: new problems after the same examples. offered: answers that a guess chooses from, where they are named.
    """

    family: ClassVar[str] = "few-shot"
    offered: ClassVar[int] = 0
    asks: Few = 4

    def item(self, room: Space, rng: Random, number: int) -> Item:
        most = max(4, room.context // 12)
        asked = [self._shot(rng) for _ in range(self.asks)]
        new = {shot.problem for shot in asked}
        shots = [shot.text for shot in (self._shot(rng) for _ in range(most)) if shot.problem not in new]
        asks = tuple(
            room.ask(
                f"\n\nProblem: {shot.problem}\nSolution:",
                f" {shot.steps}The answer is {shot.answer}.",
                offered=self.offered,
            )
            for shot in asked
        )

        def document(size: int) -> str:
            return GAP.join(shots[:size])

        size = room.longest(document, (1, len(shots)), room.left(asks))
        return Item(document(size), asks, stretches(shots[:size], len(GAP)))

    def score(self, ask: Ask, output: str) -> float:
        wanted, found = _final(ask.expected[0]), _final(output.partition("\n\n")[0])
        return float(found == wanted)

    @abstractmethod
    def _shot(self, rng: Random) -> Shot:
        """A problem of the kind."""


def _final(text: str) -> str | None:
    """What the answer is, by a solution's own words."""
    found = re.search(r"answer is ([^.\n]*)", text)
    return found[1].strip() if found else None


@register
@dataclass(frozen=True)
class Arithmetic(FewShot):
    """Two steps of adding and taking away, in words, as in GSM8K."""

    name: ClassVar[str] = "few_shot_arithmetic"
    source: ClassVar[str] = SOURCE.format("arithmetic reasoning")

    def _shot(self, rng: Random) -> Shot:
        who, what = rng.choice(words.FIRST_NAMES), rng.choice(THINGS)
        has, more = rng.randrange(11, 60), rng.randrange(3, 40)
        less = rng.randrange(2, has + more - 1)
        return Shot(
            f"{who} has {has} {what}, finds {more} more and gives {less} away. How many {what} are left?",
            f"{has} + {more} = {has + more}. {has + more} - {less} = {has + more - less}. ",
            str(has + more - less),
        )


@register
@dataclass(frozen=True)
class Knowledge(FewShot):
    """Capitals, four to choose from, as in MMLU. A model has to know them."""

    name: ClassVar[str] = "few_shot_knowledge"
    source: ClassVar[str] = SOURCE.format("world knowledge")
    offered: ClassVar[int] = 4

    def _shot(self, rng: Random) -> Shot:
        drawn = [pair.split("/") for pair in rng.sample(COUNTRIES, len(LETTERS))]
        place = rng.randrange(len(LETTERS))
        listed = ", ".join(f"{letter}) {city}" for letter, (_, city) in zip(LETTERS, drawn, strict=True))
        return Shot(f"Which city is the capital of {drawn[place][0]}? {listed}.", "", LETTERS[place])


@register
@dataclass(frozen=True)
class Commonsense(FewShot):
    """Which of two things is heavier. A model has to know them."""

    name: ClassVar[str] = "few_shot_commonsense"
    source: ClassVar[str] = SOURCE.format("commonsense reasoning")
    offered: ClassVar[int] = 2

    def _shot(self, rng: Random) -> Shot:
        light = rng.randrange(len(BY_WEIGHT) - 3)
        heavy = rng.randrange(light + 3, len(BY_WEIGHT))
        pair = [BY_WEIGHT[light], BY_WEIGHT[heavy]]
        rng.shuffle(pair)
        return Shot(f"Which is heavier, a {pair[0]} or a {pair[1]}?", "", BY_WEIGHT[heavy])


@register
@dataclass(frozen=True)
class Code(FewShot):
    """The value of a short Python expression."""

    name: ClassVar[str] = "few_shot_code"
    source: ClassVar[str] = SOURCE.format("code; there it is written, here read")

    def _shot(self, rng: Random) -> Shot:
        values = [rng.randrange(10) for _ in range(4)]
        form, result = rng.choice(
            (
                (f"max({values})", max(values)),
                (f"len({values})", 4),
                (f"{values}[1]", values[1]),
                (f"sum({values})", sum(values)),
            )
        )
        return Shot(f"What is the value of {form} in Python?", "", str(result))
