"""One plan on one job: what is held, what is answered on forks, and how an answer ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import headwise
from headwise.assets import novel
from headwise.bench.job import Job, Question, encode
from headwise.bench.runner import Runner
from headwise.seams.transformers.cache import as_plan, attach
from headwise.seams.transformers.drive import decode, generate, prefill
from headwise.seams.transformers.replay import read_once
from headwise.tasks.base import Ask

Loaded = tuple[Any, Any]


def test_lost_mass_is_what_evictions_took(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = encode(tokenizer, novel()[:1200], start=True)
    cache = headwise.Cache(model, "streaming(100)")
    prefill(model, cache, ids, 100)
    events = [event for event in cache.session.ledger.evictions if event.layer == 1]
    left = 1.0
    for event in events:
        left *= 1 - event.lost_mass[0]
    assert len(events) > 2
    assert cache.session.ledger.lost_mass([2] * 3)[1][0] == pytest.approx(1 - left)
    doubled = replace(cache.session.ledger.evictions[0], row=1)
    cache.session.ledger.evictions.append(doubled)
    assert cache.session.ledger.lost_mass([2] * 3)[1][0] == pytest.approx(1 - left)


def asked(tokenizer: Any, *texts: str, limit: int = 6, lines: int | None = None) -> Job:
    """A stretch of the novel and these questions."""
    questions = tuple(Question(Ask(text, (), limit), encode(tokenizer, text), lines) for text in texts)
    return Job(encode(tokenizer, novel()[:1200], start=True), questions, new_tokens=7)


@pytest.mark.parametrize("chunk", [None, 100])
def test_everything_is_asked_on_a_fork_of_the_prompt_alone(loaded: Loaded, chunk: int | None) -> None:
    model, tokenizer = loaded
    job = asked(tokenizer, "\nWho?", "\nWhat is it?")
    plan = as_plan(attach(model), "snapkv(0.3)")
    ran = Runner(model, tokenizer, chunk=chunk).run(plan, job)
    for question, answer in zip(job.questions, ran.answers, strict=True):
        cache = headwise.Cache(model, plan)
        logits = prefill(model, cache, job.ids, chunk)
        assert ran.held.cache_bytes == cache.nbytes and ran.held.tokens == job.tokens
        before = cache.session.ledger.byte_steps
        assert answer.tokens == generate(model, cache, question.ids, 6)[0].tolist()
        assert answer.byte_steps - ran.held.byte_steps == cache.session.ledger.byte_steps - before
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)
    again = headwise.Cache(model, plan)
    prefill(model, again, job.ids, chunk)
    assert ran.continued is not None and ran.continued.tokens == decode(model, again, logits, 7)[0].tolist()
    assert ran.perplexity is None and ran.held.plan_digest == plan.digest


def test_a_reading_is_taken_over_and_changes_nothing(loaded: Loaded) -> None:
    model, tokenizer = loaded
    job, runner = asked(tokenizer, "\nWho?"), Runner(model, tokenizer)
    plan = as_plan(attach(model), "h2o(90) | int8")
    own, shared = runner.run(plan, job), runner.run(plan, job, recording=read_once(model, job.ids))
    assert own.held.kept == shared.held.kept and own.held.lost_mass == shared.held.lost_mass
    assert [one.tokens for one in own.answers] == [one.tokens for one in shared.answers]


def test_an_answer_ends_with_a_line_break_beyond_its_own(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plan = as_plan(attach(model), "")
    (whole,) = Runner(model, tokenizer).run(plan, asked(tokenizer, "\nWho?", limit=40)).answers
    assert whole.truncated and len(whole.tokens) == 40 and whole.steps == 39

    class Breaking:
        """Every token is a line of its own."""

        eos_token_id = None

        def decode(self, new: list[int], **how: Any) -> str:
            return "".join("x\n" for _ in new)

    job = asked(tokenizer, "\nWho?", limit=40, lines=2)
    (answer,) = Runner(model, Breaking()).run(plan, job).answers
    assert answer.tokens == whole.tokens[:3] and not answer.truncated


def test_steps_are_told_in_order(loaded: Loaded) -> None:
    model, tokenizer = loaded
    job, runner, told = asked(tokenizer, "\nWho?", "\nWhy?"), Runner(model, tokenizer, chunk=100), []
    runner.run(as_plan(attach(model), ""), job, tell=lambda what, done: told.append((what, done)))
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert [what for what, _ in told[-3:]] == ["answering", "answering", "going on with the text"]
    assert told[-1][1] == runner.steps(job) - 1


def test_drafts_change_no_answer(loaded: Loaded) -> None:
    model, tokenizer = loaded
    job = asked(tokenizer, "\nWho?", "\nWhy?", limit=20)
    plan = as_plan(attach(model), "h2o(0.5) | int8")
    plain, drafted = (Runner(model, tokenizer, draft=draft).run(plan, job) for draft in (None, "lookup"))
    assert [one.tokens for one in drafted.answers] == [one.tokens for one in plain.answers]
