"""Whether a plan may be used: a few minutes beside dense attention, and a verdict that the plan file carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headwise.bench.checks.fidelity import fidelity
from headwise.bench.job import Job, Question
from headwise.bench.protocol import digest, record
from headwise.bench.runner import Runner
from headwise.errors import HeadwiseError
from headwise.kept import once
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import prefill
from headwise.watch import Watch, within

GRAM = 8  # tokens in a row whose return counts as a loop


@dataclass(frozen=True)
class Limits:
    """What a plan may lose. kl: mean nats by token. agreement: least share of tokens where dense chooses the same.
    needle, turns: share of facts answered that may be lost, asked each on a fork or one after the other in one
    conversation. loops: more share of repeated runs of GRAM tokens in a free text than dense attention writes."""

    kl: float = 0.1
    agreement: float = 0.9
    needle: float = 0.1
    turns: float = 0.1
    loops: float = 0.1


@dataclass(frozen=True)
class Checker:
    """Runs the parts of a check on one model and one job, a novel with facts planted; prompts are read in one pass.

    folder: where finished parts are kept; those that are there are not made again.
    """

    model: PreTrainedModel
    tokenizer: Any
    job: Job
    seed: int = 0
    folder: Path | None = None

    def check(
        self, plan: Plan, limits: Limits, watch: Watch, each: Callable[[str], None] = lambda line: None
    ) -> dict[str, Any]:
        """The verdict as plain JSON data: `passed`, `failures` in words, and every figure with dense beside it.

        each: told every part in a line as it is done.
        """
        if self.job.continuation is None:
            raise HeadwiseError("a check needs a text that goes on; make the job with novel_job")
        record = self._record(plan)
        part = 2 * len(self.job.questions) + 2  # steps of one behaviour; comparing distributions counts as much
        dense_watch = within(watch, "dense attention", part, 3 * part)
        own_watch = within(watch, "the plan", 2 * part, 3 * part)
        makers: dict[str, Callable[[], dict[str, Any]]] = {
            "distributions": partial(self._distributions, plan),
            "dense attention": partial(self._behaviour, "", dense_watch),
            "the plan": partial(self._behaviour, plan, own_watch),
        }
        parts = []
        for place, (name, make) in enumerate(makers.items()):
            watch(name, place * part, 3 * part)
            key = digest([name, record["hashes"]["data"], record["hashes"]["model"], plan.digest, self.seed])
            parts.append(once(self.folder, key, make))
            each(f"{name}: {_said(parts[-1])}")
        close, dense, own = parts
        figures = {"kl": close["kl"], "agreement": close["agreement"], "dense": dense, "plan": own}
        failures = judged(figures, limits)
        return {
            "passed": not failures,
            "failures": failures,
            "limits": asdict(limits),
            **figures,
            "fidelity": close["fidelity"],
            "protocol": record,
        }

    def _distributions(self, plan: Plan) -> dict[str, Any]:
        """How near the plan's distributions over the true continuation are to dense attention's."""
        assert self.job.continuation is not None, "asked for in check"
        ids, after = self.job.ids.to(self.model.device), self.job.continuation.to(self.model.device)
        close = fidelity(self.model, plan, ids, after, seed=self.seed)
        return {"kl": close.mean_kl, "agreement": close.agreement, "fidelity": close.as_json()}

    @property
    def _runner(self) -> Runner:
        return Runner(self.model, self.tokenizer, seed=self.seed)

    def _behaviour(self, recipe: str | Plan, watch: Callable[[str, int], None]) -> dict[str, Any]:
        """What is answered by depth and by turn, and how much a free text repeats itself."""
        cache, count = Cache(self.model, recipe, seed=self.seed), len(self.job.questions)
        logits = prefill(self.model, cache, self.job.ids.to(self.model.device), None)
        needle, turns = [], []
        for number, question in enumerate(self.job.questions):
            watch("facts by depth", 1 + number)
            needle.append(self._right(cache.fork(), question, ())[0])
        talk = cache.fork()
        last: tuple[int, ...] = ()
        for number, question in enumerate(self.job.questions):
            watch("a conversation", 1 + count + number)
            right, last = self._right(talk, question, last)
            turns.append(right)
        watch("a free text", 1 + 2 * count)
        free = self._runner.write(cache, self.job.ids, logits, self.job.new_tokens).tokens
        depths = [question.ask.depth for question in self.job.questions]
        return {"depths": depths, "needle": needle, "turns": turns, "loops": repetition(free), "wrote": len(free)}

    def _right(self, cache: Cache, question: Question, before: Sequence[int]) -> tuple[bool, tuple[int, ...]]:
        """Whether the next answer of a conversation is right, and its last token, which the next turn has to feed;
        `before` is that token of the last turn."""
        ids = torch.cat((torch.tensor([list(before)], dtype=torch.int64), question.ids), dim=1)
        found = self._runner.answer(cache, self.job.ids, replace(question, ids=ids))
        return question.ask.right(found.text), tuple(found.tokens[-1:])

    def _record(self, plan: Plan) -> dict[str, Any]:
        asked = [[question.ask.prompt, question.ask.expected[0], question.ask.depth] for question in self.job.questions]
        data = digest([self.job.ids.tolist(), asked, self.job.continuation.tolist()])  # type: ignore[union-attr]
        settings = {"tokens": self.job.tokens, "questions": len(asked), "new_tokens": self.job.new_tokens}
        model = {"name": "", "fingerprint": attach(self.model).fingerprint}
        return record(data=data, settings=settings, arms=[plan.digest], model=model, seed=self.seed)


def _said(part: dict[str, Any]) -> str:
    """A part in a few words."""
    if "kl" in part:
        return f"KL from dense {part['kl']:.4f} nats by token, top-1 agreement {part['agreement']:.1%}"
    counts = ", ".join(f"{sum(part[name])} of {len(part[name])} {name}" for name in ("needle", "turns"))
    return f"{counts}, repeats {part['loops']:.1%} of a free text"


def judged(figures: dict[str, Any], limits: Limits) -> list[str]:
    """What fails, in words with the figure and its limit."""
    dense, own = figures["dense"], figures["plan"]
    failures = []
    if figures["kl"] > limits.kl:
        failures.append(f"KL from dense {figures['kl']:.3f} nats (at most {limits.kl:g})")
    if figures["agreement"] < limits.agreement:
        failures.append(f"top-1 agreement {figures['agreement']:.1%} (at least {limits.agreement:.0%})")
    for name, told in (("needle", "facts by depth"), ("turns", "facts in a conversation")):
        mine, whole = sum(own[name]), sum(dense[name])
        if whole - mine > getattr(limits, name) * len(own[name]):
            failures.append(f"{told} {mine} of {len(own[name])}, dense {whole}")
    if own["loops"] - dense["loops"] > limits.loops:
        failures.append(f"repeats {own['loops']:.1%} of what it writes, dense {dense['loops']:.1%}")
    return failures


def repetition(tokens: Sequence[int]) -> float:
    """Share of the runs of GRAM tokens that were there before, 0 to 1."""
    runs = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
