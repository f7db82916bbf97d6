"""What is evicted of by itself is read once for all who ask about it, held as it was kept, and answers are those of
requests alone, bit for bit, whatever was asked before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from headwise.chat.wording import wording_of
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, attach
from headwise.serve.bodies import ChatBody, CompletionBody
from headwise.serve.marks import mark_of, why_no_mark
from headwise.serve.prefix_folder import PrefixFolder
from headwise.serve.refusals import Refused
from headwise.serve.request import Request, Usage
from headwise.serve.rows import Rows
from headwise.serve.scheduler import Scheduler
from headwise.serve.served import Served
from tests.contract.drive import everything, small
from tests.serve.alone import alone, prompt
from tests.serve.test_scheduler import GREEDY, LIMITS, run, submit

PIECE, MARK = LIMITS.piece, 4 * LIMITS.piece
# Of what looks at nothing, at the last queries, at what all tokens saw, at the prompt again, in bits and by windows.
RECIPES = (
    "expected_attention(0.25)",
    "snapkv(0.25) | int8",
    "h2o(0.25)",
    "kvzip(0.25)",
    "l2norm(0.25)",
    "streaming(40)",
)


@pytest.fixture
def made(model: PreTrainedModel, tokenizer: Any, rows: Rows, tmp_path: Path) -> Callable[..., Scheduler]:
    def make(folder: bool = False, **limits: Any) -> Scheduler:
        kept = PrefixFolder(tmp_path / "kept", model, PIECE) if folder else None
        within = replace(LIMITS, prefix_bytes=2 << 20, **limits)
        return Scheduler(model, tokenizer, within, rows, prefix_folder=kept)

    return make


def asked(model: PreTrainedModel, recipe: str, seed: int, evict_after: int = MARK + 9) -> Request:
    """A request that begins as all others and goes on by its seed."""
    seam = attach(model)
    ids = (*prompt(MARK + 20, 0), *prompt(50 + seed, seed))
    plan = Plan.uniform(seam.geometry, recipe, seam.fingerprint)
    return Request(ids, plan, 8, GREEDY, evict_after=evict_after)


def wanted(model: PreTrainedModel, request: Request) -> list[int]:
    """The answer over one cache that reads two prompts, one after the other."""
    new = request.max_tokens
    return alone(model, request.plan, request.ids, new, PIECE, gather=True, mark=MARK).ids


def test_a_mark_is_the_end_of_a_piece_and_never_of_the_prompt() -> None:
    assert [mark_of(after, 300, 48) for after in (0, 47, 48, 100, 999)] == [0, 0, 48, 96, 240]
    assert mark_of(48, 50, 48) == 0, "the rest is too short to be read as a prompt"


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_read_once_and_answers_are_those_of_requests_alone(
    model: PreTrainedModel, made: Callable[..., Scheduler], recipe: str
) -> None:
    one, read = made(), list[int]()
    for seed in (1, 2, 3):
        request, before = asked(model, recipe, seed), one.counts["read"]
        _, told = submit(one, request)
        run(one)
        read.append(one.counts["read"] - before)
        assert isinstance(told.last, Usage) and told.last.cached == (MARK if seed > 1 else 0)
        assert told.tokens() == wanted(model, request)[: len(told.tokens())] and len(told.tokens()) >= 1
    assert read == [len(asked(model, recipe, seed).ids) - MARK * (seed > 1) for seed in (1, 2, 3)]
    (kept,) = one.prefixes._held()
    assert one.prefixes.hits == 2 and kept.cache is not None and kept.cache.session is not None
    share = 0.8 if "l2norm" in recipe else 0.3  # which leaves two layers of the three whole
    stored = [kept.cache.session.lengths(layer) for layer in range(3)]
    assert sum(int(one.sum()) for one in stored) <= share * MARK * sum(one.numel() for one in stored), (
        "it is held as it is kept"
    )


def test_answers_are_those_of_requests_alone_for_every_method_that_evicts(
    model: PreTrainedModel, made: Callable[..., Scheduler]
) -> None:
    """The first of two requests, which reads all, and the second, which goes on; within what was promised."""
    one, tried, wrong = made(kv_bytes=32 << 20), 0, set[str]()
    for name in everything():
        plan = Cache(model, small(name)).plan
        if why_no_mark(plan):
            continue
        tried += 1
        for seed in (1, 2):
            ids = (*prompt(2 * PIECE + 10, 0), *prompt(40 + seed, seed))
            _, told = submit(one, Request(ids, plan, 3, GREEDY, evict_after=2 * PIECE))
            run(one)
            found = alone(model, plan, ids, 3, PIECE, gather=True, mark=2 * PIECE).ids
            known = isinstance(told.last, Usage) and told.last.cached == 2 * PIECE * (seed - 1)
            if not known or told.tokens() != found[: len(told.tokens())] or not told.tokens():
                wrong.add(name)
    assert not wrong and tried > 30 and not one.counts["promises_broken"]


def test_it_is_no_beginning_of_what_is_read_whole_or_evicted_of_elsewhere(
    model: PreTrainedModel, made: Callable[..., Scheduler]
) -> None:
    one = made()
    for evict_after in (MARK, 0, 2 * PIECE, MARK, 0, 2 * PIECE):
        submit(one, asked(model, "l2norm(0.25)", 1, evict_after))
        run(one)
    assert one.prefixes.hits == 3 and one.prefixes.misses == 3 and not one.unshared


def test_it_survives_a_restart(model: PreTrainedModel, made: Callable[..., Scheduler]) -> None:
    request = asked(model, "h2o(0.25) | int8", 1)
    first = made(folder=True)
    submit(first, request)
    run(first)
    first.close()
    second = made(folder=True)
    assert second.prefixes.nbytes == first.prefixes.nbytes
    _, told = submit(second, replace(request, ids=(*request.ids[:-9], *prompt(30, 8))))
    run(second)
    assert isinstance(told.last, Usage) and told.last.cached == MARK
    _, told = submit(second, request)
    run(second)
    assert told.tokens() == wanted(model, request)[: len(told.tokens())]


def test_who_makes_room_goes_on_as_if_it_had_not(model: PreTrainedModel, made: Callable[..., Scheduler]) -> None:
    one, request = made(), replace(asked(model, "snapkv(0.25)", 1), max_tokens=40)
    _, told = submit(one, request)
    while len(told.tokens()) < 5:
        one.advance()
    one._put_aside(one._active[0])
    run(one)
    assert told.tokens() == wanted(model, request)[: len(told.tokens())] and len(told.tokens()) > 5


@pytest.fixture
def served(model: PreTrainedModel, tokenizer: Any) -> Served:
    return Served("tiny", model, tokenizer, wording_of(tokenizer))


def chat(system: str, user: str, **ours: Any) -> ChatBody:
    said = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return ChatBody.model_validate({"model": "tiny", "messages": said, "headwise": ours})


def test_of_a_chat_it_is_what_the_system_says(served: Served) -> None:
    text = "A man came to the river. " * 8
    ours = {"recipe": "l2norm(0.5)", "evict_after": "system"}
    some = [served.chat(chat(text, user, **ours)) for user in ("Who came?", "When?", "a")]
    assert len({one.evict_after for one in some}) == 1
    assert len({one.ids[: some[0].evict_after - 1] for one in some}) == 1
    assert some[0].evict_after > 0.7 * len(some[0].ids)


@pytest.mark.parametrize(("recipe", "why"), [("int8", "evicts nothing"), ("", "evicts nothing")])
def test_what_cannot_be_evicted_of_is_refused(served: Served, recipe: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        served.chat(chat("a", "b", recipe=recipe, evict_after="system"))
    body = {"model": "tiny", "prompt": "a", "headwise": {"recipe": recipe, "evict_after": 5}}
    with pytest.raises(Refused, match=why):
        served.completions(CompletionBody.model_validate(body))
