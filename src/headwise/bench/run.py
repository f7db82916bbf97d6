"""One arm of a job after the other, measured in the same way, and the check that nothing changes without a plan."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headwise.bench.arms import Arm
from headwise.bench.job import Job, Question
from headwise.bench.judge import check_control
from headwise.bench.protocol import digest
from headwise.engine.session import Session
from headwise.kept import keep, kept
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import continuation_nll, decode, feed, prefill
from headwise.watch import Watch


@dataclass(frozen=True)
class Row:
    """What one arm did. Bytes and counts are those right after the prompt.

    recipes: heads by the recipe they follow. predicted_bytes: told before any work. kept, lost_mass [layers][KV heads]:
    tokens kept, and the share of attention that was evicted (see `Ledger.lost_mass`). moved_per_token: bytes carried
    between memory and a tier in each decode step. remarks: see `Session.remarks`. answers: ask, got, and of a
    planted fact depth, expected, right.
    """

    recipe: str
    role: str
    plan_digest: str
    recipes: dict[str, int]
    prefill_s: float
    decode_tokens_per_s: float | None
    cache_bytes: int
    predicted_bytes: int
    dense_bytes: int
    peak_bytes: int
    kept_share: float
    kept: list[list[int]]
    lost_mass: list[list[float]]
    backends: dict[str, int]
    remarks: list[str]
    moved_per_token: int
    answers_right: int | None = None
    answers_total: int | None = None
    perplexity: float | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    continued: str = ""


@dataclass
class _Clock:
    """Decode steps, their time and the bytes they carried to and from a tier, over all answers of an arm."""

    steps: int = 0
    seconds: float = 0.0
    moved: int = 0


class Runner:
    """Runs arms of one job on one model. chunk: tokens of a prefill piece, None for one pass. resident, folder: as in
    `Cache`, for all arms."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        job: Job,
        *,
        chunk: int | None = 2048,
        seed: int = 0,
        resident: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.job, self.chunk, self.seed = model, tokenizer, job, chunk, seed
        self.resident, self.folder = resident, folder
        self.ids = job.ids.to(model.device)

    def warm_up(self) -> None:
        """Pay first-call costs before anything is timed."""
        cache = Cache(self.model, "")
        prefill(self.model, cache, self.ids[:, : self.chunk], None)
        feed(self.model, cache, self.ids[:, :1])

    @property
    def steps(self) -> int:
        """Steps of one arm, for those who wait: pieces of the prompt, questions, and the rest."""
        pieces = 1 if self.chunk is None else -(-self.job.tokens // self.chunk)
        return pieces + len(self.job.questions) + 1

    def run(self, arm: Arm, predicted: int, watch: Callable[[str, int], None]) -> tuple[Row, list[list[int]]]:
        """The row of an arm, and every token it wrote. watch: told what is being done, and how many steps are."""
        pieces = self.steps - len(self.job.questions) - 1
        cache = Cache(self.model, arm.plan, seed=self.seed, resident=self.resident, folder=self.folder)
        start = time.perf_counter()
        logits = prefill(
            self.model, cache, self.ids, self.chunk, lambda done, total: watch("reading", pieces * done // total)
        )
        seconds = time.perf_counter() - start
        session = cache.session
        assert session is not None, "a prompt was read"
        held = self._state(session)
        clock, wrote, texts = _Clock(), [], []
        for number, question in enumerate(self.job.questions):
            watch("answering", pieces + number)
            new = self._answer(cache.fork(), question, clock)
            wrote.append(new)
            texts.append(self.tokenizer.decode(new, skip_special_tokens=True))
        watch("going on with the text", self.steps - 1)
        continued = ""
        if self.job.new_tokens:
            wrote.append(self._timed(cache.fork(), logits, self.job.new_tokens, clock))
            continued = self.tokenizer.decode(wrote[-1], skip_special_tokens=True)
        row = Row(
            recipe=arm.name,
            role=arm.role,
            plan_digest=arm.plan.digest,
            recipes=dict(Counter(str(recipe) for heads in arm.plan.recipes for recipe in heads)),
            prefill_s=seconds,
            decode_tokens_per_s=clock.steps / clock.seconds if clock.steps else None,
            predicted_bytes=predicted,
            moved_per_token=clock.moved // max(1, clock.steps),
            **held,
            **self._verdicts(texts),
            perplexity=self._perplexity(cache),
            continued=continued,
        )
        return row, wrote

    def _answer(self, cache: Cache, question: Question, clock: _Clock) -> list[int]:
        logits = feed(self.model, cache, question.ids.to(self.model.device))
        return self._timed(cache, logits, question.limit, clock)

    def _timed(self, cache: Cache, logits: Any, most: int, clock: _Clock) -> list[int]:
        assert cache.session is not None, "a prompt was read"
        start, before = time.perf_counter(), cache.session.moved_bytes()
        new = decode(self.model, cache, logits, most)[0].tolist()
        clock.seconds += time.perf_counter() - start
        clock.moved += cache.session.moved_bytes() - before
        clock.steps += len(new) - 1
        return new

    def _perplexity(self, cache: Cache) -> float | None:
        if self.job.continuation is None:
            return None
        total, count = continuation_nll(self.model, cache.fork(), self.job.continuation.to(self.model.device))
        return math.exp(min(total / count, 700.0))

    def _verdicts(self, texts: Sequence[str]) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        for question, got in zip(self.job.questions, texts, strict=True):
            answer: dict[str, Any] = {"ask": question.ask, "got": got}
            if question.expected is not None:
                answer |= {"depth": question.depth, "expected": question.expected, "right": question.right(got)}
            answers.append(answer)
        marked = [answer["right"] for answer in answers if "right" in answer]
        counts = {"answers_right": sum(marked), "answers_total": len(marked)} if marked else {}
        return {"answers": answers, **counts}

    def _state(self, session: Session) -> dict[str, Any]:
        """What the cache holds right after the prompt."""
        heads = session.plan.geometry.kv_heads
        kept = [session.lengths(layer)[0].tolist() for layer in range(len(heads))]
        backends = {name: count for (phase, name), count in session.ledger.backends.items() if phase == "prefill"}
        return {
            "cache_bytes": session.nbytes(),
            "dense_bytes": session.dense_bytes(),
            "peak_bytes": session.ledger.peak_bytes,
            "kept": kept,
            "kept_share": sum(map(sum, kept)) / (self.job.tokens * sum(heads)),
            "lost_mass": session.ledger.lost_mass(heads),
            "backends": backends,
            "remarks": session.remarks(),
        }


def run_arms(
    runner: Runner, arms: Sequence[Arm], predicted: Sequence[int], watch: Watch, folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Each arm's row as plain JSON data, as soon as it is there.

    folder: where finished rows are kept; those that are there are not measured again. Raises HeadwiseError at the end
    when the control arm did not write what the dense arm wrote, token for token.
    """
    wrote: dict[str, list[list[int]]] = {}
    cold, total = True, len(arms) * runner.steps
    for place, (arm, held) in enumerate(zip(arms, predicted, strict=True)):
        key = digest([arm.role, arm.name, arm.plan.digest, held])
        found = kept(folder, key)
        if found is None:
            if cold:
                watch("warming up", place * runner.steps, total)
                runner.warm_up()
                cold = False
            label = f"{place + 1}/{len(arms)} {arm.name}"
            row, tokens = runner.run(arm, held, partial(_labelled, watch, label, (place * runner.steps, total)))
            found = keep(folder, key, {"row": as_json(row), "wrote": tokens})
        wrote[arm.role] = found["wrote"]
        yield found["row"]
    if "control" in wrote:
        check_control(wrote.get("dense"), wrote["control"])


def _labelled(watch: Watch, label: str, place: tuple[int, int], what: str, done: int) -> None:
    before, total = place
    watch(f"{label}: {what}", before + done, total)


def as_json(row: Row) -> dict[str, Any]:
    """A row as plain JSON data, rounded to what was measured."""
    facts = asdict(row)
    facts["lost_mass"] = [[round(share, 6) for share in heads] for heads in row.lost_mass]
    for name, places in (("prefill_s", 4), ("decode_tokens_per_s", 2), ("perplexity", 4), ("kept_share", 6)):
        facts[name] = None if facts[name] is None else round(facts[name], places)
    return facts
