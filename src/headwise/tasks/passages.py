"""Questions on passages: a user's own in the format of SQuAD and XQuAD, or small lives that are made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from pydantic import BaseModel

from headwise.errors import HeadwiseError, shown
from headwise.files import read_json
from headwise.models.embedded import words
from headwise.tasks.base import Ask, Few, Item, Space, Split, Task, register
from headwise.tasks.haystack import wordlist
from headwise.tasks.scores import any_found

CITIES = wordlist(
    "Paris London Vienna Madrid Lisbon Berlin Dublin Oslo Athens Cairo Boston Geneva Venice Prague Warsaw"
)
TRADES = wordlist("carpenter teacher doctor sailor painter lawyer banker tailor weaver miner farmer singer butcher")
PETS = wordlist("tiger eagle falcon otter badger rabbit beaver dolphin turtle horse camel spider parrot raven swan")
LETTERS = "ABCD"
LEAST = 4  # passages
TUNING = 5  # one passage of a file in so many is for tuning


@dataclass(frozen=True)
class Question:
    """Asked of one passage; any of `answers` is right. others: wrong answers of the same kind, where there are any."""

    text: str
    answers: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A text and questions on it."""

    text: str
    questions: tuple[Question, ...]


def read_squad(path: str) -> tuple[Passage, ...]:
    """The paragraphs of a SQuAD or XQuAD file that have a question with an answer."""
    fix = "give a file in SQuAD's format, see docs/reference/tasks.md, or none"
    told = read_json(Path(path), _Squad, HeadwiseError, fix)
    passages = [
        Passage(
            one.context.strip(),
            tuple(
                Question(asked.question.strip(), tuple(answer.text for answer in asked.answers))
                for asked in one.qas
                if asked.answers
            ),
        )
        for article in told.data
        for one in article.paragraphs
    ]
    return tuple(one for one in passages if one.questions)


class _Answer(BaseModel):
    text: str


class _Asked(BaseModel):
    question: str
    answers: list[_Answer]


class _Paragraph(BaseModel):
    context: str
    qas: list[_Asked]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    """SQuAD's format, as far as it is read."""

    data: list[_Article]


def lives(rng: Random, count: int) -> list[Passage]:
    """Made-up people: where each was born, what each worked as, what each kept, and who the neighbour is."""
    names = [f"{first} {last}" for first in words.FIRST_NAMES for last in words.LAST_NAMES]
    names = rng.sample(names, min(count, len(names)))
    born = [rng.choice(CITIES) for _ in names]
    passages = []
    for i, name in enumerate(names):
        trade, pet, neighbour = rng.choice(TRADES), rng.choice(PETS), names[i - 1]
        text = (
            f"{name} was born in {born[i]} and worked as a {trade}. In later years {name} kept a {pet} "
            f"and lived in the house next to {neighbour}."
        )
        questions = (
            Question(f"In which city was {name} born?", (born[i],), _others(CITIES, born[i])),
            Question(f"What did {name} work as?", (trade,), _others(TRADES, trade)),
            Question(f"Which animal did {name} keep?", (pet,), _others(PETS, pet)),
            Question(f"In which city was the neighbour of {name} born?", (born[i - 1],), _others(CITIES, born[i - 1])),
        )
        passages.append(Passage(text, questions))
    return passages


def _others(known: tuple[str, ...], right: str) -> tuple[str, ...]:
    return tuple(one for one in known if one != right)


@dataclass(frozen=True)
class Passages(Task):
    """As many passages as the context holds, in any order, and questions on some of them.

    path: a SQuAD or XQuAD file, made-up lives where empty. asks: questions of an item.
    """

    family: ClassVar[str] = "reading"
    first: ClassVar[int] = 0  # of the passages that is asked about
    path: str = ""
    asks: Few = 4

    def item(self, room: Space, rng: Random, number: int) -> Item:
        passages = self._passages(rng, max(LEAST, room.context // 20))
        chosen = rng.getrandbits(64)

        def made(size: int) -> Item:
            draw = Random(chosen)
            places = draw.sample(range(self.first, size), min(self.asks, size - self.first))
            asked = [(i, self._question(draw, passages[i].questions)) for i in places]
            asks = tuple(self._ask(room, draw, question, i / size) for i, question in asked)
            text = "\n\n".join(f"Document {i}: {one.text}" for i, one in enumerate(passages[:size], 1))
            return Item(text, asks)

        return room.fill(made, (self.first + 1, len(passages)))

    def score(self, ask: Ask, output: str) -> float:
        return any_found(ask.expected, output.strip().partition("\n")[0])

    def _passages(self, rng: Random, most: int) -> list[Passage]:
        if not self.path:
            return lives(rng, most)
        found = _share(read_squad(self.path), self.split)
        return rng.sample(found, len(found))

    def _question(self, rng: Random, questions: tuple[Question, ...]) -> Question:
        return rng.choice(questions if self.path else questions[:3])

    def _ask(self, room: Space, rng: Random, question: Question, depth: float) -> Ask:
        prompt = f"\n\nQuestion: {question.text}\nAnswer:"
        offered = 1 + len(question.others) if question.others else 0
        return room.ask(prompt, *(f" {one}" for one in question.answers), offered=offered, depth=depth)


def _share(passages: tuple[Passage, ...], split: Split) -> list[Passage]:
    return [one for i, one in enumerate(passages) if (i % TUNING == 0) == (split == "tune")]


@register
@dataclass(frozen=True)
class PassageQa(Passages):
    """Questions that one passage answers."""

    name: ClassVar[str] = "passage_qa"
    source: ClassVar[str] = "The Sparse Frontier, 2504.17768 (QA on SQuAD); passages of the user, or made up"


@register
@dataclass(frozen=True)
class RulerQa1(Passages):
    """One question on passages among others."""

    name: ClassVar[str] = "ruler_qa_1"
    source: ClassVar[str] = "RULER, 2404.06654, section 3 (SQuAD); passages of the user, or made up"
    asks: Few = 1


@register
@dataclass(frozen=True)
class RulerQa2(Passages):
    """One question that needs two passages: where the neighbour of somebody was born."""

    name: ClassVar[str] = "ruler_qa_2"
    source: ClassVar[str] = "RULER, 2404.06654, section 3 (there HotpotQA); made-up passages only"
    first: ClassVar[int] = 1  # whose neighbour is the person before, and so in the document
    asks: Few = 1

    def conflict(self) -> str | None:
        return f"it reads no file ({shown(self.path)}); use passage_qa for one" if self.path else None

    def _question(self, rng: Random, questions: tuple[Question, ...]) -> Question:
        return questions[3]


@register
@dataclass(frozen=True)
class ChoiceQa(Passages):
    """Questions with four answers to choose from, by letter."""

    name: ClassVar[str] = "choice_qa"
    source: ClassVar[str] = "The Sparse Frontier, 2504.17768 (QA on QuALITY and TOEFL); made-up passages only"

    def conflict(self) -> str | None:
        if self.path:
            return f"it reads no file ({shown(self.path)}), as it needs wrong answers; use passage_qa"
        return None

    def _ask(self, room: Space, rng: Random, question: Question, depth: float) -> Ask:
        offered = [question.answers[0], *rng.sample(question.others, len(LETTERS) - 1)]
        rng.shuffle(offered)
        listed = "\n".join(f"{letter}. {one}" for letter, one in zip(LETTERS, offered, strict=True))
        right = LETTERS[offered.index(question.answers[0])]
        prompt = f"\n\nQuestion: {question.text}\n{listed}\nAnswer:"
        return room.ask(prompt, f" {right}", offered=len(LETTERS), depth=depth)

    def score(self, ask: Ask, output: str) -> float:
        return Task.score(self, ask, output)
