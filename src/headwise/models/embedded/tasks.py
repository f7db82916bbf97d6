"""Facts, records and chains as text: one source of the strings for training, evaluation and commands.

Every string here is ASCII and joins other text at a place where the tokenizer cuts anyway, so
that the ids of the parts, joined, are the ids of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from . import words
from .words import held_out

LEADS = ("", "", "", "", "Remember that ", "Note that ", "It is known that ", "By the way, ", "People said that ")
RESTATES = ("As said before, ", "Once more: ", "To repeat, ", "Again, ", "")
PASSAGE = "\nPassage {tag}:\n"
PASSAGE_END = "\nEnd of passage {tag}.\n"
PASSAGE_COPY = "\nCopy of passage {tag}:\n"
RECORDS = "\nRecords:"
RECALL = "\nRecall:"


@dataclass(frozen=True)
class Fact:
    """One planted fact and its question.

    key: what is asked for (decides the held-out split); opening: the sentence up to its value.
    """

    key: str
    opening: str
    value: str
    ask: str

    @property
    def sentence(self) -> str:
        """The whole sentence, to stand after a space between two sentences."""
        return f"{self.opening} {self.value}."

    @property
    def question(self) -> str:
        """The prompt that continues a document. It opens the answer, as RULER's (2404.06654) does: a small model
        has to recall, not to phrase."""
        return f"\nQuestion: {self.ask}\nAnswer: The {self.key} is"

    @property
    def answer(self) -> str:
        """The expected continuation of the question."""
        return f" {self.value}."

    def restated(self, rng: Random) -> str:
        """The opening in other words, to be continued by the answer."""
        return " " + _sentence(rng.choice(RESTATES), f"the {self.key} is")


def _sentence(lead: str, core: str) -> str:
    """Lead-in and core with a capital at the front."""
    text = lead + core
    return text[0].upper() + text[1:]


def _value(rng: Random, number: bool) -> str:
    """Five digits, or a word."""
    return str(rng.randrange(10_000, 100_000)) if number else rng.choice(words.VALUE_WORDS)


def draw_fact(rng: Random, held: bool = False) -> Fact:
    """A random fact whose key is held out (`held`) or is for training (not `held`)."""
    while True:
        number = rng.random() < 0.7
        if number:
            attribute = rng.choice(words.NUMBER_ATTRIBUTES)
            owner = f"the {rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"
        else:
            attribute = rng.choice(words.WORD_ATTRIBUTES)
            owner = f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"
        key = f"{attribute} of {owner}"
        if held_out(key) == held:
            break
    core = f"the {key} is"
    way = rng.random()
    if way < 0.8:
        ask = f"What is the {key}?"
    elif way < 0.9:
        ask = f"Which {attribute} does {owner} have?"
    else:
        ask = f"Tell me the {key}."
    return Fact(key, _sentence(rng.choice(LEADS), core), _value(rng, number), ask)


def draw_facts(rng: Random, count: int, held: bool = False) -> list[Fact]:
    """`count` facts with different keys."""
    facts: dict[str, Fact] = {}
    while len(facts) < count:
        fact = draw_fact(rng, held)
        facts.setdefault(fact.key, fact)
    return list(facts.values())


@dataclass(frozen=True)
class Records:
    """Key-value lines (`text`) and their queries: a prompt that ends in `key:` and the answer."""

    pairs: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The lines, each opened by a newline."""
        return RECORDS + "".join(f"\n{k}: {v}" for k, v in self.pairs)

    def query(self, index: int) -> tuple[str, str]:
        """(prompt, answer) of one record; the first query of a document follows `RECALL`."""
        key, value = self.pairs[index]
        return f"\n{key}:", f" {value}"


def draw_records(rng: Random, count: int, held: bool = False) -> Records:
    """`count` records with different keys of one kind and values of one kind."""
    kind, number = rng.randrange(3), rng.random() < 0.7
    pairs: dict[str, str] = {}
    for _ in range(1000 * count):
        if len(pairs) == count:
            break
        if kind == 0:
            key = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"
        elif kind == 1:
            key = f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"
        else:
            key = f"{rng.choice(words.VALUE_WORDS)}{rng.randrange(100, 1000)}"
        if held_out(key) == held:
            pairs.setdefault(key, _value(rng, number))
    if len(pairs) < count:
        raise ValueError(f"{count} records need more {'held-out ' if held else ''}keys than there are; ask for fewer")
    return Records(tuple(pairs.items()))


@dataclass(frozen=True)
class Chain:
    """A thing in a container, the container in another or in a room; `links` are (what, where)."""

    links: tuple[tuple[str, str], ...]

    @property
    def sentences(self) -> list[str]:
        """One sentence a link, first the thing's."""
        return [f"The {what} is in the {where}." for what, where in self.links]

    def question(self, start: int = 0) -> str:
        """Asks for the room of the thing (`start` 0) or of a container on the way."""
        return f"\nQuestion: In which room is the {self.links[start][0]}?\nAnswer:"

    @property
    def answer(self) -> str:
        """The room, the chain's last place."""
        return f" the {self.links[-1][1]}."

    @property
    def trace_question(self) -> str:
        """Asks for all links in order, the first one opened."""
        return f"\nQuestion: Trace the {self.links[0][0]}.\nAnswer: the {self.links[0][0]} is in the"

    @property
    def trace(self) -> str:
        """The rest of all links in order, the answer of `trace_question`."""
        steps = [f"the {what} is in the {where}" for what, where in self.links[1:]]
        return ", ".join([f" {self.links[0][1]}", *steps]) + "."


def fits(count: int, hops: int) -> bool:
    """Whether there are containers and rooms enough for so many chains."""
    return count * (hops - 1) <= len(words.COLOURS) * len(words.CONTAINERS) and count <= len(words.ROOMS)


def draw_chains(rng: Random, count: int, hops: int, held: bool = False) -> list[Chain]:
    """`count` chains of `hops` links over different things, containers and (up to 26) rooms."""
    if not fits(count, hops):
        raise ValueError(f"{count} chains of {hops} hops need more containers or rooms than there are")
    things: dict[str, None] = {}
    while len(things) < count:
        thing = f"{rng.choice(words.MATERIALS)} {rng.choice(words.THINGS)}"
        if held_out(thing) == held:
            things.setdefault(thing)
    every = len(words.COLOURS) * len(words.CONTAINERS)
    boxes = [
        f"{words.COLOURS[i % len(words.COLOURS)]} {words.CONTAINERS[i // len(words.COLOURS)]}"
        for i in rng.sample(range(every), count * (hops - 1))
    ]
    rooms = rng.sample(words.ROOMS, count)
    chains = []
    for i, thing in enumerate(things):
        places = [thing, *boxes[i * (hops - 1) : (i + 1) * (hops - 1)], rooms[i]]
        chains.append(Chain(tuple(pairwise(places))))
    return chains


def draw_tag(rng: Random) -> str:
    """A short name of a passage, such as `owl 417`."""
    return f"{rng.choice(words.VALUE_WORDS)} {rng.randrange(100, 1000)}"


def plant(text: str, sentences: Sequence[str], depths: Sequence[float]) -> str:
    """Put each sentence between two sentences of `text`, near its depth (0 start .. 1 end)."""
    ends = [m.end() for m in re.finditer(r"[.!?][\"')\]]*(?=\s)", text)]
    if not ends:
        raise ValueError("the text has no sentence end to plant a fact behind; give a longer text")
    placed = []
    for sentence, depth in zip(sentences, depths, strict=True):
        if not 0.0 <= depth <= 1.0:
            raise ValueError(f"depth is {depth}; give a number from 0 (start) to 1 (end)")
        placed.append((min(ends, key=lambda e: abs(e - depth * len(text))), sentence))
    for end, sentence in sorted(placed, key=lambda p: p[0], reverse=True):
        text = f"{text[:end]} {sentence}{text[end:]}"
    return text
