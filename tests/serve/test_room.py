"""Answers wait for prompts no longer than they must, and requests for each other no longer than memory lasts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from headwise.decoding.drafters.lookup import Lookup
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.serve.request import Request, Usage
from headwise.serve.rows import Rows
from headwise.serve.scheduler import Scheduler
from tests.serve.alone import alone, prompt
from tests.serve.test_scheduler import GREEDY, LIMITS, RECIPES, run, submit


class Clock:
    """Goes on by a second whenever it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def made(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Any:
    def make(ends: Any = (), **limits: Any) -> Scheduler:
        return Scheduler(model, tokenizer, replace(LIMITS, **limits), rows, ends=ends, clock=Clock())

    return make


def asked(model: PreTrainedModel, recipe: str, tokens: int, new: int, seed: int = 0, **more: Any) -> Request:
    seam = attach(model)
    return Request(
        tuple(prompt(tokens, seed)), Plan.uniform(seam.geometry, recipe, seam.fingerprint), new, GREEDY, **more
    )


@pytest.mark.parametrize("recipe", ["", "snapkv(0.4) | int8", "cur(0.5)", "kvzip(0.5)"])
def test_a_running_answer_waits_for_a_layer_and_not_for_a_piece(model: PreTrainedModel, made: Any, recipe: str) -> None:
    """Of three layers each begins a second after the one before, so that after one and a half another step is due."""
    one = made(stall=1.5, seconds=1e9)
    short = submit(one, asked(model, "", 20, 40))[1]
    one.advance()
    request = asked(model, recipe, 48 * 4, 3, 1)
    long, steps = submit(one, request)[1], 0
    while not long.events:
        before = len(short.tokens())
        one.advance()
        steps += 1
        assert len(short.tokens()) == before + 1
    run(one)
    assert one.counts["paused"] >= (1 if recipe == "cur(0.5)" else 4) and steps > one.counts["paused"]
    assert short.tokens() == alone(model, "", prompt(20), 40, LIMITS.piece).ids
    assert long.tokens() == alone(model, recipe, request.ids, 3, LIMITS.piece, gather=True).ids


def test_who_is_gone_in_the_middle_of_a_piece_leaves_nothing(model: PreTrainedModel, made: Any) -> None:
    one = made(stall=1.5, seconds=1e9)
    short = submit(one, asked(model, "", 20, 12))[1]
    one.advance()
    ticket, told = submit(one, asked(model, "snapkv(0.5)", 200, 3, 1))
    one.advance()
    assert one.counts["paused"] == 1
    ticket.cancel()
    run(one)
    assert not told.events and short.tokens() == alone(model, "", prompt(20), 12, LIMITS.piece).ids
    assert one.stats().held == 0


@pytest.mark.parametrize("files", [True, False])
def test_the_newest_makes_room_and_goes_on_as_if_it_had_not(model: PreTrainedModel, made: Any, files: bool) -> None:
    """More is admitted than can be written to its end; what is cheaper decides how a request is kept."""
    one = made(kv_bytes=420_000, ahead=4, seconds=1e9)
    requests = [asked(model, recipe, 90 + seed, 60, seed) for seed, recipe in enumerate(("", "int8", *RECIPES))]
    tolds = [submit(one, request)[1] for request in requests]
    while not one.idle:
        one.costs.byte.value = 0.0 if files else 1e9
        one.advance()
        stats = one.stats()
        assert stats.held <= 420_000 and stats.promised <= 420_000
    kind = "put_aside_in_files" if files else "put_aside_to_be_read_again"
    assert one.counts[kind] >= 2, one.counts
    for request, told in zip(requests, tolds, strict=True):
        assert isinstance(told.last, Usage), told.last
        assert told.tokens() == alone(model, request.plan, request.ids, 60, LIMITS.piece, gather=True).ids
    one.close()


@pytest.mark.parametrize("files", [True, False])
def test_several_choices_that_were_put_aside_go_on(model: PreTrainedModel, made: Any, files: bool) -> None:
    one = made(kv_bytes=300_000, ahead=4, seconds=1e9)
    first = submit(one, asked(model, "", 100, 60))[1]
    second = submit(one, asked(model, "", 60, 40, 1, choices=2))[1]
    while not one.idle:
        one.costs.byte.value = 0.0 if files else 1e9
        one.advance()
    assert one.counts["put_aside_in_files" if files else "put_aside_to_be_read_again"] >= 1
    assert first.tokens() == alone(model, "", prompt(100), 60, LIMITS.piece).ids
    for choice in range(2):
        assert second.tokens(choice) == alone(model, "", prompt(60, 1), 40, LIMITS.piece).ids


def test_files_that_are_damaged_are_read_again_and_none_stays(model: PreTrainedModel, made: Any) -> None:
    one = made(kv_bytes=300_000, ahead=4, seconds=1e9)
    tolds = [submit(one, asked(model, "", 100, 60, seed, draft=Lookup()))[1] for seed in range(2)]
    late = submit(one, asked(model, "int8", 100, 60, 2))
    while not one.idle:
        one.costs.byte.value = 0.0
        one.advance()
        for path in (path for paths in one.aside._files.values() for path in paths):
            path.write_bytes(path.read_bytes()[:-5])
    folder = Path(one.aside._folder.name)
    assert one.counts["put_aside_in_files"] and not list(folder.iterdir())
    one.close()
    assert not folder.exists() and isinstance(late[1].last, Usage)
    for seed, told in enumerate(tolds):
        assert told.tokens() == alone(model, "", prompt(100, seed), 60, LIMITS.piece).ids


@pytest.mark.parametrize("recipe", ["", "int8", "snapkv(0.5)"])
def test_drafts_change_no_token(model: PreTrainedModel, made: Any, recipe: str) -> None:
    one = made(seconds=1e9)
    requests = [asked(model, recipe, 60 + seed, 90, seed, draft=Lookup(tokens=6)) for seed in range(2)]
    tolds = [submit(one, request)[1] for request in requests]
    steps = 0
    while not one.idle:
        one.advance()
        steps += 1
    for request, told in zip(requests, tolds, strict=True):
        assert told.tokens() == alone(model, recipe, request.ids, 90, LIMITS.piece, gather=True).ids
    assert one.counts["drafted"] >= one.counts["drafts_accepted"] > 0 and steps < 90


@pytest.mark.parametrize("recipe", ["", "snapkv(0.3) | int8", "expected_attention(0.3, memory=40)"])
def test_a_long_beginning_is_read_once(model: PreTrainedModel, made: Any, recipe: str) -> None:
    """Of the second request's tokens a tenth at most is read."""
    one = made(prefix_bytes=6 << 20, seconds=1e9)
    first = asked(model, recipe, 1600, 2)
    other = replace(first, ids=(*first.ids[:1560], *prompt(30, 9)))
    submit(one, first)
    run(one)
    read = one.counts["read"]
    told = submit(one, other)[1]
    run(one)
    assert one.counts["read"] - read <= 0.1 * read
    assert told.tokens() == alone(model, recipe, other.ids, 2, LIMITS.piece, gather=True).ids


def test_a_prompt_that_cannot_be_held_whole_is_evicted_of_piece_by_piece(model: PreTrainedModel, made: Any) -> None:
    """Of 700 tokens 537,600 bytes would be held at once."""
    one = made(kv_bytes=200_000, seconds=1e9)
    request = asked(model, "snapkv(64)", 700, 5)
    told = submit(one, request)[1]
    run(one)
    assert told.tokens() == alone(model, "snapkv(64)", request.ids, 5, LIMITS.piece).ids
    assert one.counts["promises_broken"] == 0
