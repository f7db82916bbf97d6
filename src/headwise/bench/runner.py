"""One plan on one prompt: read once into a cache, everything asked on forks of it.

Every row of `headwise run`, `bench` and `sweep` is measured here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from headwise.bench.job import Job, Question
from headwise.cost.prediction import predicted_bytes
from headwise.decoders import decoder
from headwise.decoding.speculate import write
from headwise.faithful.generate import write as write_contrasted
from headwise.faithful.looks import Looks
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import continuation_nll, decode, feed, prefill
from headwise.seams.transformers.replay import Recording, open_prompt

Tell = Callable[[str, int], None]  # what is being done, steps of the job done


@dataclass(frozen=True)
class Held:
    """What a cache holds right after the prompt, as plain data.

    recipes: heads by the recipe they follow. predicted_bytes: told before any work. kept, lost_mass [layers][KV heads]:
    tokens kept, and the share of attention that was evicted (see `Ledger.lost_mass`). byte_steps: bytes held, summed
    over the steps so far. backends: calls of the prompt by who computed them. remarks: see `Session.remarks`.
    """

    tokens: int
    recipes: dict[str, int]
    plan_digest: str
    cache_bytes: int
    predicted_bytes: int
    dense_bytes: int
    peak_bytes: int
    byte_steps: int
    kept: list[list[int]]
    lost_mass: list[list[float]]
    backends: dict[str, int]
    remarks: list[str]


@dataclass(frozen=True)
class Answer:
    """What a model wrote, token by token and as text.

    truncated: it came to its limit before its end. seconds: of the decode steps. moved: bytes that these carried
    between memory and a tier. byte_steps: bytes held, summed over all steps of the cache so far.
    """

    tokens: list[int]
    text: str
    truncated: bool
    seconds: float
    moved: int
    byte_steps: int

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes with the last logits of what was read."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Ran:
    """What one plan did with one job: what was held after the prompt, an answer to each question, the text that was
    written freely, and the perplexity of the true continuation, where the job has these. prefill_s, answers_s: seconds
    of the prompt, and of all questions with their answers."""

    held: Held
    answers: tuple[Answer, ...]
    continued: Answer | None
    perplexity: float | None
    prefill_s: float
    answers_s: float


def _silent(what: str, done: int) -> None:
    """Report no progress."""


class Runner:
    """Runs plans on jobs with one model. chunk: tokens of a prefill piece, None for one pass. resident, folder: as in
    `Cache`, for all plans. draft: what guesses the tokens that are written, see `headwise.speculate`; decode: what
    chooses them, see `headwise.contrast`, with the document as the context; None: nothing."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        seed: int = 0,
        chunk: int | None = None,
        resident: str | None = None,
        folder: Path | None = None,
        draft: str | None = None,
        decode: str | None = None,
    ) -> None:
        self.draft, self.decoder = draft, None if decode is None else decoder(decode)
        self.model, self.tokenizer, self.seed, self.chunk = model, tokenizer, seed, chunk
        self.resident, self.folder = resident, folder

    def warm_up(self, job: Job) -> None:
        """Pay first-call costs before anything is timed."""
        ids, cache = job.ids.to(self.model.device), Cache(self.model, "")
        prefill(self.model, cache, ids[:, : self.chunk], None)
        feed(self.model, cache, ids[:, :1])

    def steps(self, job: Job) -> int:
        """Steps of one plan, for those who wait: pieces of the prompt, questions, and the rest."""
        return self._pieces(job) + len(job.questions) + 1

    def run(self, plan: Plan, job: Job, *, recording: Recording | None = None, tell: Tell = _silent) -> Ran:
        """Read the job's prompt under `plan` and ask everything. recording: the prompt as dense attention read it, for
        plans that may take it over; others then read it in one pass. tell: told what is being done, and the steps."""
        marks = job.marks if self.decoder is None else (*job.marks, job.context)
        cache = Cache(self.model, plan, seed=self.seed, marks=marks, resident=self.resident, folder=self.folder)
        if self.decoder is not None:
            Looks(self.model, cache, self.decoder)  # refuses before any work, and measures what it is told of the model
        pieces, start = self._pieces(job), perf_counter()
        logits = self._read(cache, job, recording, lambda done, total: tell("reading", pieces * done // total))
        prefill_s = perf_counter() - start
        held, answers = held_by(cache), []
        start = perf_counter()
        for number, question in enumerate(job.questions):
            tell("answering", pieces + number)
            answers.append(self.answer(cache.fork(), job.ids, question))
        answers_s = perf_counter() - start
        tell("going on with the text", self.steps(job) - 1)
        continued = self.write(cache.fork(), job.ids, logits, job.new_tokens) if job.new_tokens else None
        return Ran(held, tuple(answers), continued, self._perplexity(cache, job), prefill_s, answers_s)

    def answer(self, cache: Cache, read: torch.Tensor, question: Question) -> Answer:
        """Put a question to `cache`, which has read `read [1, n]` and goes on with it, and let the model answer."""
        ids = question.ids.to(self.model.device)
        logits = feed(self.model, cache, ids)
        return self.write(cache, torch.cat((read.to(ids.device), ids), 1), logits, question.limit, question.lines)

    def write(
        self, cache: Cache, read: torch.Tensor, logits: torch.Tensor, limit: int, lines: int | None = None
    ) -> Answer:
        """Let the model go on, greedily or as its decoder chooses, after `read [1, n]`, what the cache has read, from
        `logits [1, vocab]`, for `limit` tokens at most. lines: line breaks that do not end what it writes; None: none
        does."""
        session = cache.session
        assert session is not None, "a prompt was read"

        def ended(new: list[int]) -> bool:
            return lines is not None and self._text(new).lstrip().count("\n") > lines

        start, before = perf_counter(), session.moved_bytes()
        if self.decoder is not None:
            looks = Looks(self.model, cache, self.decoder)
            written = write_contrasted(looks, logits, limit, read.to(logits.device), ended)
        elif self.draft is None:
            written = decode(self.model, cache, logits, limit, ended)
        else:
            written = write(self.model, cache, logits, limit, self.draft, read.to(logits.device), ended)
        new: list[int] = written[0].tolist()
        seconds = perf_counter() - start
        complete = new[-1] == self.tokenizer.eos_token_id or ended(new)
        return Answer(
            new, self._text(new), len(new) >= limit and not complete, seconds, session.moved_bytes() - before,
            session.ledger.byte_steps,
        )  # fmt: skip

    def _text(self, new: list[int]) -> str:
        text: str = self.tokenizer.decode(new, skip_special_tokens=True)
        return text

    def _pieces(self, job: Job) -> int:
        return 1 if self.chunk is None else -(-job.tokens // self.chunk)

    def _read(
        self, cache: Cache, job: Job, recording: Recording | None, progress: Callable[[int, int], None]
    ) -> torch.Tensor:
        ids = job.ids.to(self.model.device)
        if recording is None:
            return prefill(self.model, cache, ids, self.chunk, progress)
        return open_prompt(self.model, cache, ids, recording, progress)

    def _perplexity(self, cache: Cache, job: Job) -> float | None:
        if job.continuation is None:
            return None
        total, count = continuation_nll(self.model, cache.fork(), job.continuation.to(self.model.device))
        return math.exp(min(total / count, 700.0))


def held_by(cache: Cache) -> Held:
    """What `cache` holds, right after a prompt."""
    session = cache.session
    assert session is not None, "a prompt was read"
    plan, ledger = cache.plan, session.ledger
    heads, tokens = plan.geometry.kv_heads, cache.get_seq_length()
    return Held(
        tokens=tokens,
        recipes=dict(Counter(str(recipe) for row in plan.recipes for recipe in row)),
        plan_digest=plan.digest,
        cache_bytes=session.nbytes(),
        predicted_bytes=predicted_bytes(plan, tokens, session.dtype),
        dense_bytes=session.dense_bytes(),
        peak_bytes=ledger.peak_bytes,
        byte_steps=ledger.byte_steps,
        kept=[session.lengths(layer)[0].tolist() for layer in range(len(heads))],
        lost_mass=[[round(share, 6) for share in row] for row in ledger.lost_mass(heads)],
        backends={name: count for (phase, name), count in ledger.backends.items() if phase == "prefill"},
        remarks=session.remarks(),
    )
