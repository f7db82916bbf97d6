"""Questions with documents of which one holds the answer: made up, or from a file in SQuAD's format."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from headwise.context.wording import Wording
from headwise.errors import HeadwiseError
from headwise.models.embedded.tasks import Fact, draw_fact
from headwise.tasks.base import Split
from headwise.tasks.haystack import SENTENCE_END, book
from headwise.tasks.passages import read_squad

# Questions that open their answer themselves. The first tokens, on which spare attention rests, are of no document.
OPENED = Wording(head="One of the texts below answers the question at their end.\n\n", tail="{question}")
AROUND = 10  # words of the novel, about, before and after a fact
DRAWN = 12  # facts that are drawn for each document, so that some ask for the same thing of somebody else


@dataclass(frozen=True)
class Item:
    """One question. gold: the place of the document that holds the answer. proof: the sentence of it that does.

    answers: any of which is right. opened: whether the question opens the answer, so that the first of these has to
    follow at once. wording: how it is put; None: as is usual for the model.
    """

    documents: tuple[str, ...]
    question: str
    gold: int
    proof: str
    answers: tuple[str, ...]
    wording: Wording | None = None
    opened: bool = False


def facts(count: int, documents: int, seed: int = 0, split: Split = "test") -> list[Item]:
    """Made-up questions. Every document is a stretch of the novel with a fact in it, of half of them one that tells the
    same of somebody else; the one that answers goes through all places from question to question."""
    return [
        _fact_item(Random(f"{split} {seed} {number}"), documents, number % documents, split) for number in range(count)
    ]


def _fact_item(rng: Random, documents: int, gold: int, split: Split) -> Item:
    drawn = {one.key: one for one in (draw_fact(rng, split == "test") for _ in range(DRAWN * documents))}
    asked, *others = drawn.values()
    near = [one for one in others if _attribute(one) == _attribute(asked)][: documents // 2]
    far = [one for one in others if _attribute(one) != _attribute(asked)]
    rest = (near + far)[: documents - 1]
    rng.shuffle(rest)
    told = [*rest[:gold], asked, *rest[gold:]]
    text = book(split)
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    made = []
    for fact in told:
        first = rng.randrange(len(ends) - 20)
        stretch = " ".join(text[ends[first] : ends[first + 12]].split()).split(" ")
        before, after = stretch[: AROUND // 2], stretch[AROUND // 2 : AROUND]
        made.append(f"{' '.join(before)}. {fact.sentence} {' '.join(after)}.")
    return Item(tuple(made), asked.question.strip("\n"), gold, asked.sentence, (f" {asked.value}.",), OPENED, True)


def _attribute(fact: Fact) -> str:
    return fact.key.partition(" of ")[0]


def squad(path: str, count: int, documents: int, seed: int = 0, split: Split = "test") -> list[Item]:
    """Questions of a file in SQuAD's or XQuAD's format, among its passages, one in five of which is for tuning. The
    one that answers goes through all places."""
    passages = [one for i, one in enumerate(read_squad(path)) if (i % 5 == 0) == (split == "tune")]
    if len(passages) < documents:
        raise HeadwiseError(
            f"{path} has {len(passages)} passages for this, {documents} are asked for; give fewer --documents"
        )
    rng, found = Random(f"{split} {seed}"), []
    for number in range(count):
        chosen = rng.sample(passages, documents)
        gold = number % documents
        question = rng.choice(chosen[gold].questions)
        proof = next((one for one in chosen[gold].text.split(". ") if question.answers[0] in one), "")
        texts = tuple(one.text for one in chosen)
        found.append(Item(texts, question.text, gold, proof, question.answers))
    return found
