"""What the claims are tested on: the embedded model, reading the shipped novel with facts of held-out keys in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import headwise
from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.models.embedded import tasks
from headwise.plan import Plan
from headwise.seams.transformers.drive import continuation_nll, generate, prefill

FACTS = 8


@dataclass(frozen=True)
class Document:
    """ids [1, n] of a stretch of the novel with facts in it; questions and answers [1, m]; what comes after it."""

    ids: torch.Tensor
    asked: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    after: torch.Tensor


class Bench:
    """The embedded model and what it gets right under a recipe or plan."""

    def __init__(self) -> None:
        folder = embedded_model()
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)

    @lru_cache(maxsize=8)  # noqa: B019 (one bench lives as long as the tests)
    def documents(self, tokens: int, count: int) -> tuple[Document, ...]:
        """`count` different stretches of about `tokens` tokens."""
        text = novel()
        return tuple(self._document(text[50_000 + 40_000 * i :], tokens, i) for i in range(count))

    def _document(self, text: str, tokens: int, seed: int) -> Document:
        start = text.index(". ") + 2
        end = start + 3 * tokens
        facts = tasks.draw_facts(Random(f"claims/{seed}"), FACTS, held=True)
        depths = [(i + 0.5) / FACTS for i in range(FACTS)]
        planted = tasks.plant(text[start:end], [fact.sentence for fact in facts], depths)
        asked = tuple((encode(self.tokenizer, f.question), encode(self.tokenizer, f.answer)) for f in facts)
        ids = encode(self.tokenizer, planted, start=True)
        return Document(ids, asked, encode(self.tokenizer, text[end : end + 2000])[:, :200])

    def recall(self, recipe: str | Plan, documents: Sequence[Document]) -> float:
        """Share of answers right when each question comes after the document was read and evicted from."""
        right = total = 0
        for document in documents:
            cache = headwise.Cache(self.model, recipe)
            prefill(self.model, cache, document.ids, None)
            for question, answer in document.asked:
                right += self._answers(cache.fork(), question, answer)
                total += 1
        return right / total

    def recall_knowing(self, recipe: str, documents: Sequence[Document]) -> float:
        """Share of answers right when document and question are one prompt, so that the eviction sees the question."""
        right = total = 0
        for document in documents:
            for question, answer in document.asked:
                cache = headwise.Cache(self.model, recipe)
                logits = prefill(self.model, cache, torch.cat((document.ids, question), 1), None)
                first = logits.argmax(-1, keepdim=True)
                rest = generate(self.model, cache, first, answer.shape[1])[:, : answer.shape[1] - 1]
                right += torch.equal(torch.cat((first, rest), 1), answer)
                total += 1
        return right / total

    def _answers(self, cache: headwise.Cache, question: torch.Tensor, answer: torch.Tensor) -> bool:
        return torch.equal(generate(self.model, cache, question, answer.shape[1]), answer)

    def loss(self, recipe: str, documents: Sequence[Document]) -> float:
        """Nats per token of the true continuation after each document was read and evicted from."""
        total = count = 0.0
        for document in documents:
            cache = headwise.Cache(self.model, recipe)
            prefill(self.model, cache, document.ids, None)
            nll, tokens = continuation_nll(self.model, cache, document.after)
            total, count = total + nll, count + tokens
        return total / count


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()
