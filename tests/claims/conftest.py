"""What the claims are tested on: the embedded model, reading the shipped novel with facts of held-out keys in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import headwise
from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.models.embedded import tasks
from headwise.plan import Plan
from headwise.seams.transformers.drive import continuation_nll, decode, feed, prefill
from headwise.seams.transformers.replay import Call, Recorder, Recording, open_prompt, read_once, replay

FACTS = 8


@dataclass(frozen=True)
class Document:
    """ids [1, n] of a stretch of the novel with facts in it; questions and answers [1, m]; what comes after it."""

    ids: torch.Tensor
    asked: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    after: torch.Tensor


class Bench:
    """The embedded model and what it gets right under a recipe or plan.

    Dense attention reads every document once; plans that compute the same of a prompt are given its recording.
    """

    def __init__(self) -> None:
        folder = embedded_model()
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)

    def documents(self, tokens: int, count: int) -> tuple[Document, ...]:
        """`count` different stretches of about `tokens` tokens."""
        return tuple(self._document(tokens, i) for i in range(count))

    @cache  # noqa: B019 (one bench lives as long as the tests)
    def _document(self, tokens: int, seed: int) -> Document:
        text = novel()[50_000 + 40_000 * seed :]
        start = text.index(". ") + 2
        end = start + 3 * tokens
        facts = tasks.draw_facts(Random(f"claims/{seed}"), FACTS, held=True)
        depths = [(i + 0.5) / FACTS for i in range(FACTS)]
        planted = tasks.plant(text[start:end], [fact.sentence for fact in facts], depths)
        asked = tuple((encode(self.tokenizer, f.question), encode(self.tokenizer, f.answer)) for f in facts)
        ids = encode(self.tokenizer, planted, start=True)
        return Document(ids, asked, encode(self.tokenizer, text[end : end + 2000])[:, :200])

    @lru_cache(maxsize=4)  # noqa: B019 (of 1500 tokens, 75 MiB each)
    def _recording(self, document: Document) -> Recording:
        return read_once(self.model, document.ids)

    def _recording_on(self, document: Document, question: torch.Tensor) -> Recording:
        """Of document and question as one prompt: the document's own, and the question read after it."""
        before, recorder = self._recording(document), Recorder(self.model)
        replay(self.model, before, recorder)
        logits = prefill(self.model, recorder, question, None)
        ids = torch.cat((document.ids, question), 1)
        return Recording(ids, tuple(map(_joined, before.calls, recorder.calls)), logits, recorder.states.fork())

    def read(self, recipe: str | Plan, document: Document) -> headwise.Cache:
        """A cache that has read the document."""
        read = headwise.Cache(self.model, recipe)
        open_prompt(self.model, read, document.ids, self._recording(document))
        return read

    def recall(self, recipe: str | Plan, documents: Sequence[Document]) -> float:
        """Share of answers right when each question comes after the document was read and evicted from."""
        right = [
            self._right_by_name(recipe, one) if isinstance(recipe, str) else self._right(recipe, one)
            for one in documents
        ]
        return sum(right) / sum(len(document.asked) for document in documents)

    @cache  # noqa: B019 (a test that changes a method asks about recipes that no other test names)
    def _right_by_name(self, recipe: str, document: Document) -> int:
        return self._right(recipe, document)

    def _right(self, recipe: str | Plan, document: Document) -> int:
        read, right = self.read(recipe, document), 0
        for question, answer in document.asked:
            asked = read.fork()
            right += self._answers(asked, feed(self.model, asked, question), answer)
        return right

    def recall_knowing(self, recipe: str, documents: Sequence[Document]) -> float:
        """Share of answers right when document and question are one prompt, so that the eviction sees the question."""
        right = [
            self.answers_knowing(headwise.Cache(self.model, recipe), document, question, answer)
            for document in documents
            for question, answer in document.asked
        ]
        return sum(right) / len(right)

    def answers_knowing(
        self, empty: headwise.Cache, document: Document, question: torch.Tensor, answer: torch.Tensor
    ) -> bool:
        """Whether the answer follows when an empty cache is given document and question as one prompt."""
        ids = torch.cat((document.ids, question), 1)
        return self._answers(empty, open_prompt(self.model, empty, ids, self._recording_on(document, question)), answer)

    def _answers(self, asked: headwise.Cache, logits: torch.Tensor, answer: torch.Tensor) -> bool:
        """Whether `answer [1, m]` is what follows the last logits of a cache; a wrong token ends it."""
        new = decode(self.model, asked, logits, answer.shape[1], stop=lambda new: new != answer[0, : len(new)].tolist())
        return torch.equal(new, answer)

    def loss(self, recipe: str | Plan, documents: Sequence[Document]) -> float:
        """Nats per token of the true continuation after each document was read and evicted from."""
        total = count = 0.0
        for document in documents:
            nll, tokens = continuation_nll(self.model, self.read(recipe, document), document.after)
            total, count = total + nll, count + tokens
        return total / count


def _joined(before: Call, after: Call) -> Call:
    """One call of the tokens of both."""
    q, k, v, out = (torch.cat((getattr(before, x), getattr(after, x)), 2) for x in ("q", "k", "v", "out"))
    return replace(after, q=q, k=k, v=v, out=out)


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()
