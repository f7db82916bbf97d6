"""Passages that say otherwise than the world does, that do not say what is asked, or that say it in one of many places.

All are made here, from a seed, so that whoever has the package has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from headwise.tasks.passages import lives

DOCUMENTS = 6  # of a prompt where what is asked stands in one of them
UNKNOWN = ("unknown", "not mentioned", "not say", "not state", "not specified", "not provided", "no information")

COUNTRIES = {
    "France": ("Paris", "French", "Europe"),
    "Germany": ("Berlin", "German", "Europe"),
    "Italy": ("Rome", "Italian", "Europe"),
    "Spain": ("Madrid", "Spanish", "Europe"),
    "Russia": ("Moscow", "Russian", "Europe"),
    "Greece": ("Athens", "Greek", "Europe"),
    "Poland": ("Warsaw", "Polish", "Europe"),
    "Sweden": ("Stockholm", "Swedish", "Europe"),
    "Norway": ("Oslo", "Norwegian", "Europe"),
    "Hungary": ("Budapest", "Hungarian", "Europe"),
    "Portugal": ("Lisbon", "Portuguese", "Europe"),
    "Turkey": ("Ankara", "Turkish", "Asia"),
    "China": ("Beijing", "Chinese", "Asia"),
    "Japan": ("Tokyo", "Japanese", "Asia"),
    "Thailand": ("Bangkok", "Thai", "Asia"),
    "Vietnam": ("Hanoi", "Vietnamese", "Asia"),
    "South Korea": ("Seoul", "Korean", "Asia"),
    "Iran": ("Tehran", "Persian", "Asia"),
    "Egypt": ("Cairo", "Arabic", "Africa"),
    "Ethiopia": ("Addis Ababa", "Amharic", "Africa"),
    "Kenya": ("Nairobi", "Swahili", "Africa"),
    "England": ("London", "English", "Europe"),
}
ATTRIBUTES = (
    ("capital", "The capital of {}"),
    ("language", "The main language of {}"),
    ("continent", "The continent of {}"),
)


@dataclass(frozen=True)
class Asked:
    """A passage and a question. opening: how the answer is begun for the model; nothing where it begins itself.

    told: what the passage says; nothing where it does not. known: what the world says, where it says otherwise. slot:
    which document of the passage tells it.
    """

    kind: str
    passage: str
    question: str
    opening: str
    told: str = ""
    known: str = ""
    slot: int | None = None

    def said(self, output: str) -> str:
        """ "told", "known", "abstained" or "other": what an answer says first."""
        text = output.lower()
        places = {name: _place(text, word) for name, word in (("told", self.told), ("known", self.known))}
        found = {name: place for name, place in places.items() if place >= 0}
        if found:
            return min(found, key=lambda name: found[name])
        return "abstained" if any(word in text for word in UNKNOWN) else "other"

    def settled(self, output: str) -> bool:
        """Whether what follows cannot change what an answer says first: a word is named, and has ended."""
        return self.said(output[:-1]) != "other"

    def right(self, output: str) -> bool:
        """Whether an answer is what the passage says, or says that it does not say it."""
        return self.said(output) == ("told" if self.told else "abstained")


def _place(text: str, word: str) -> int:
    found = re.search(rf"\b{re.escape(word.lower())}\b", text) if word else None
    return -1 if found is None else found.start()


def conflicts(seed: int, count: int) -> list[Asked]:
    """Facts that a passage tells otherwise than the world, among others of its kind."""
    rng, found = Random(f"conflicts/{seed}"), []
    asked = [(country, number) for country in COUNTRIES for number in range(len(ATTRIBUTES))]
    rng.shuffle(asked)
    for country, number in asked[:count]:
        kind, opening = ATTRIBUTES[number]
        others = rng.sample([one for one in COUNTRIES if one != country], 3)
        known, values = COUNTRIES[country][number], sorted({facts[number] for facts in COUNTRIES.values()})
        told = rng.choice([one for one in values if one != known])
        lines = [f"{opening.format(one)} is {rng.choice(values)}." for one in others]
        lines.insert(rng.randrange(len(lines) + 1), f"{opening.format(country)} is {told}.")
        question = f"What is the {kind} of {country}, by this text?"
        found.append(Asked("conflict", " ".join(lines), question, f"{opening.format(country)} is", told, known))
    return found


def unanswerable(seed: int, count: int) -> list[Asked]:
    """Questions on people of whom the passage tells something else."""
    found = []
    for number in range(count):
        rng = Random(f"unanswerable/{seed}/{number}")
        people = lives(rng, DOCUMENTS // 2)
        name = people[0].text.partition(" was born")[0]
        wish = rng.choice(("the name of the mother of {}", "the favourite song of {}", "the height of {}"))
        question = f"What is {wish.format(name)}? If the text does not say it, answer: unknown."
        found.append(Asked("unanswerable", "\n".join(one.text for one in people), question, ""))
    return found


def placed(seed: int, count: int) -> list[Asked]:
    """Questions on one of several documents, in each place as often."""
    found = []
    for number in range(count):
        rng = Random(f"placed/{seed}/{number}")
        people, slot = lives(rng, DOCUMENTS), number % DOCUMENTS
        name = people[slot].text.partition(" was born")[0]
        told = people[slot].questions[0].answers[0]
        passage = "\n".join(f"Document {place}: {one.text}" for place, one in enumerate(people, 1))
        opening = f"{name} was born in"
        found.append(Asked("placed", passage, f"In which city was {name} born?", opening, told, slot=slot))
    return found


KINDS: dict[str, Callable[[int, int], list[Asked]]] = {
    "conflict": conflicts,
    "unanswerable": unanswerable,
    "placed": placed,
}
