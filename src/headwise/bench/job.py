"""What is read and asked: a novel with facts planted in it, or a user's own text and questions. Data only."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.models.embedded import tasks
from headwise.observe import Recall
from headwise.shapes import Mark
from headwise.tasks.base import SPARE, Ask, Space, Task
from headwise.tasks.haystack import SENTENCE_END, beginnings

PLAIN = "\nQuestion: {ask}\nAnswer:"
CHAT = "chat"
CONTINUATION = 256  # tokens of true text after the document that perplexity is taken over


@dataclass(frozen=True)
class Question:
    """Asked after the document, on a cache of its own: what is asked, as text, and its ids [1, m] with all that is put
    around it. lines: line breaks that do not end the answer; None: none does."""

    ask: Ask
    ids: torch.Tensor
    lines: int | None = None

    @property
    def limit(self) -> int:
        """New tokens at most."""
        return self.ask.limit


@dataclass(frozen=True)
class Job:
    """One prompt `ids [1, n]` and what is asked of it; `continuation [1, m]` is how the text truly goes on, or None.

    marks: named ranges of the prompt. new_tokens: tokens written freely after the document, for speed and the control.
    title, template: what is read, and how questions are put, for people. opening: tokens before the document itself.
    """

    ids: torch.Tensor
    questions: tuple[Question, ...]
    marks: tuple[Mark, ...] = ()
    continuation: torch.Tensor | None = None
    new_tokens: int = 0
    title: str = ""
    template: str = ""
    opening: int = 0

    @property
    def context(self) -> Mark:
        """The document, but for its last token: what decoders of passages look at."""
        return Mark("context", self.opening, max(self.opening + 1, self.tokens - 1))

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return self.ids.shape[1]


def encode(tokenizer: Any, text: str, start: bool = False) -> torch.Tensor:
    """Ids [1, n] of a text; with the tokenizer's own opening tokens at the `start` of a sequence only."""
    ids = tokenizer(text, add_special_tokens=start, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor([ids], dtype=torch.int64)


def recalls(tokenizer: Any, task: Task, tokens: int, count: int, seed: int, asks: int | None = None) -> list[Recall]:
    """`count` documents of a task, of at most `tokens` tokens with a question and its answer, as ids: each with its
    questions and their true answers, the first `asks` of them or all."""
    found = []
    for item in task.items(lambda text: encode(tokenizer, text).shape[1], tokens, count, seed):
        asked = ((encode(tokenizer, ask.prompt), encode(tokenizer, ask.expected[0])) for ask in item.asks[:asks])
        found.append(Recall(encode(tokenizer, item.document, start=True), tuple(asked)))
    return found


def novel_job(
    tokenizer: Any, text: str, context: int, *, title: str, facts: int = 10, seed: int = 0, new_tokens: int = 64
) -> Job:
    """The beginning of `text`, in whole sentences, with facts at evenly spread depths, and a question about each.

    Document and longest question with its answer fit into `context` tokens, and so do document and continuation.
    """
    if facts < 1:
        raise HeadwiseError(f"{facts} facts: nothing would be asked; give at least 1")
    drawn = tasks.draw_facts(Random(f"run/{seed}"), facts, held=True)
    depths = [i / (facts - 1) for i in range(facts)] if facts > 1 else [0.5]
    questions = []
    for fact, depth in zip(drawn, depths, strict=True):
        limit = encode(tokenizer, fact.answer).shape[1] + SPARE
        ids = encode(tokenizer, fact.question)
        questions.append(Question(Ask(fact.question.strip(), (fact.answer,), limit, depth), ids))
    room = max(CONTINUATION, 1 + new_tokens, *(one.ids.shape[1] + one.limit for one in questions))

    counter = Space(lambda part: encode(tokenizer, part, start=True).shape[1], context)
    try:
        ends, planted = beginnings(text, [fact.sentence for fact in drawn], depths, SENTENCE_END)
        place = counter.longest(planted, (0, len(ends) - 1), context - room)
    except ContextError:
        raise ContextError(
            f"a context of {context} tokens leaves no sentence beside {facts} facts and {room} tokens for questions "
            "and answers; give --context more or --facts fewer"
        ) from None
    end, document = ends[place], encode(tokenizer, planted(place), start=True)
    after = encode(tokenizer, text[end : end + 12 * CONTINUATION])[:, :CONTINUATION]
    if after.shape[1] < CONTINUATION:
        raise ContextError(
            f"the document is shorter than a context of {context} tokens; give --context {document.shape[1] // 2} "
            "or so, or a longer text with --prompt-file"
        )
    return Job(
        document, tuple(questions), continuation=after, new_tokens=new_tokens,
        title=f"{title}, {facts} facts planted", template="planted",
    )  # fmt: skip


def marked(job: Job, tokenizer: Any, marks: Sequence[tuple[str, str]]) -> Job:
    """The job with marks of the places where its prompt says certain words: (kind, words) each, which it says once."""
    ids, found = job.ids[0].tolist(), []

    def written(count: int) -> str:
        """What the first so many tokens write: any tokenizer tells that."""
        text: str = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        return text

    def length(count: int) -> int:
        return len(written(count))

    text = written(len(ids))
    for kind, words in marks:
        times = text.count(words)
        if times != 1:
            raise HeadwiseError(
                f"--mark '{kind}: {words}': the prompt says that {times} times before the question; give words that it "
                "says once, as they stand there"
            )
        start = text.index(words)
        counts = range(len(ids) + 1)
        first = bisect_right(counts, start, key=length) - 1
        found.append(Mark(kind, first, bisect_left(counts, start + len(words), key=length)))
    return replace(job, marks=(*job.marks, *found))


def asking_job(tokenizer: Any, text: str, asks: list[str], *, title: str, template: str, max_new_tokens: int) -> Job:
    """A user's text and questions; with no question, the text is continued.

    template: text with `{ask}` in it, put after the document; "chat" for the tokenizer's own chat template; "" for that
    where there is one and else PLAIN.
    """
    text = text.strip()
    if not text:
        raise ContextError(f"{title} is empty; give a prompt with some text in it")
    template = template or (CHAT if getattr(tokenizer, "chat_template", None) else PLAIN)
    if not asks:
        ids = encode(tokenizer, text, start=True)
        if ids.shape[1] < 2:
            raise ContextError(f"{title} is a single token; give a longer prompt or a question with --ask")
        last = Question(Ask("", (), max_new_tokens), ids[:, -1:])
        return Job(ids[:, :-1], (last,), title=title, template="continued")
    if any(not ask.strip() for ask in asks):
        raise HeadwiseError("--ask is empty; give a question, or leave --ask out to have the text continued")
    prompts = [_prompt(tokenizer, text, ask, template) for ask in asks]
    ids = encode(tokenizer, prompts[0][0], start=template != CHAT)
    questions = tuple(
        Question(Ask(ask, (), max_new_tokens), encode(tokenizer, rest))
        for ask, (_, rest) in zip(asks, prompts, strict=True)
    )
    opening = encode(tokenizer, prompts[0][0].partition(text)[0]).shape[1] if template == CHAT else 0
    return Job(ids, questions, title=title, template=template, opening=opening)


def _prompt(tokenizer: Any, text: str, ask: str, template: str) -> tuple[str, str]:
    """(what is read once, what is put for this question)."""
    if template != CHAT:
        if "{ask}" not in template:
            raise HeadwiseError(f"template {template!r} has no place for the question; put {{ask}} where it goes")
        return text, template.replace("{ask}", ask.strip())
    if not getattr(tokenizer, "chat_template", None):
        raise HeadwiseError(
            "this model's tokenizer has no chat template; leave --template out or give a text with {ask}"
        )
    message = {"role": "user", "content": f"{text}\n\n{ask.strip()}"}
    whole = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    cut = whole.index(text) + len(text)
    return whole[:cut], whole[cut:]
