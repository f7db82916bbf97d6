"""A step is a transaction: whatever interrupts it, wherever, `abort` makes the session what it was before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from headwise.cache import pages
from headwise.cache.tiers import Tier
from headwise.engine.rows import select_rows
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Scoring
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import Text, everything, feed, geometry, small
from tests.fuzz.faults import Interrupted, Lines
from tests.fuzz.state import differences, state

PROMPT, DRAFT = 100, 16  # four drafts decode as many tokens as lie between evictions
POINTS = 8  # places of a step at which it is interrupted, spread over all its lines

Open = Callable[[], Session]
Step = Callable[[Session], torch.Tensor]


def opened(recipe: Recipe, text: Text, drafts: int = 0, tier: Tier | None = None) -> Session:
    """A session after the prompt and some drafts of 16 tokens."""
    session = Session(Plan.uniform(geometry(), recipe), rows=text.q.shape[1], tier=tier)
    feed(session, text, 0, PROMPT, "prefill")
    for draft in range(drafts):
        feed(session, text, PROMPT + draft * DRAFT, DRAFT, "decode")
    return session


def check(begin: Open, step: Step, points: int = POINTS) -> None:
    """Interrupt `step` at places all over it: each time `abort` takes it back; then it runs as if nothing had been."""
    session, twin = begin(), begin()
    near = (".bytes",) if session.tier is not None else ()  # which pages are near is no state
    before = state(session)
    assert not differences(before, state(twin))
    with Lines() as lines:
        expected = step(twin)
    for point in range(points):
        with Lines(1 + point * (lines.count - 1) // points), pytest.raises(Interrupted) as planted:
            step(session)
        session.abort()
        assert not differences(state(session), before, near), f"interrupted at {planted.value}"
    assert torch.equal(step(session), expected)
    paged = (*near, "ledger.moved") if near else ()  # pages that are near need not be fetched again
    assert not differences(state(session), state(twin), paged)


def recipe_of(name: str) -> Recipe:
    return Recipe() if name == "dense" else small(name)


@pytest.mark.parametrize("name", ["dense", *everything()])
def test_a_step_that_evicts_while_decoding_is_taken_back(name: str) -> None:
    text = Text.random(geometry(), PROMPT + 4 * DRAFT)
    step: Step = lambda session: feed(session, text, PROMPT + 3 * DRAFT, DRAFT, "decode")  # noqa: E731
    check(lambda: opened(recipe_of(name), text, 3), step)


@pytest.mark.parametrize("name", ["dense", *everything()])
def test_a_piece_of_prompt_is_taken_back(name: str) -> None:
    text = Text.random(geometry(), PROMPT + 40)
    check(lambda: opened(recipe_of(name), text), lambda session: feed(session, text, PROMPT, 40, "prefill"))


@pytest.mark.parametrize("recipe", ["h2o(0.3, sinks=2, recent=6)", "cam(0.3, sinks=2, recent=6) | int8", "quest(32)"])
def test_pages_in_a_file_are_taken_back(recipe: str, tmp_path: Path) -> None:
    text, tier = Text.random(geometry(), PROMPT + 4 * DRAFT), Tier(32 << 10, tmp_path)
    step: Step = lambda session: feed(session, text, PROMPT + 3 * DRAFT, DRAFT, "decode")  # noqa: E731
    check(lambda: opened(Recipe.parse(recipe), text, 3, tier), step, 3 * POINTS)


def test_every_line_of_an_eviction_is_a_place_to_come_back_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values merged, notes and masses written, tokens moved down in place a few at a time, levels settled."""
    monkeypatch.setattr(pages, "PART", 8)
    recipe = Recipe.parse("h2o(0.4, sinks=2, recent=6) | ada | kivi(window=8, group=16)")
    text = Text.random(geometry(windows=(None,)), PROMPT + 4 * DRAFT)

    def begin() -> Session:
        session = Session(Plan.uniform(geometry(windows=(None,)), recipe))
        feed(session, text, 0, PROMPT, "prefill")
        for draft in range(3):
            feed(session, text, PROMPT + draft * DRAFT, DRAFT, "decode")
        return session

    session, before = begin(), state(begin())
    for line in count(1, 29):
        with Lines(line):
            try:
                feed(session, text, PROMPT + 3 * DRAFT, DRAFT, "decode")
                break
            except Interrupted as planted:
                session.abort()
                assert not differences(before, state(session)), f"interrupted at {planted}"
    assert line > 300


def test_what_was_evicted_comes_back_and_costs_nothing_once_committed() -> None:
    text = Text.random(geometry(), PROMPT + 40)
    session = opened(Recipe.parse("streaming(40, sinks=2)"), text)
    held = session.nbytes()
    session.begin(40, "prefill")
    for layer in range(2):
        q, k, v = (x[layer, :, :, PROMPT:] for x in (text.q, text.k, text.v))
        session.step(layer, q, k, v, Scoring(0.25))
    assert session.cache_bytes() == held
    assert held < session.nbytes() < 2 * held  # what left, and no copy of what stayed
    after = session.fork()
    assert session.nbytes() == after.nbytes() == held  # a fork says that the step has succeeded
    session.abort()
    assert session.seen == [PROMPT + 40]


def test_a_closed_step_is_taken_back_until_it_is_committed() -> None:
    text = Text.random(geometry(), PROMPT + 2)
    session = opened(Recipe(), text)
    session.begin(1, "decode")
    for layer in range(2):
        q, k, v = (x[layer, :, :, PROMPT : PROMPT + 1] for x in (text.q, text.k, text.v))
        session.step(layer, q, k, v, Scoring(0.25))
    session.abort()
    assert session.seen == [PROMPT]
    session.abort()
    assert session.seen == [PROMPT]


def test_a_step_begun_without_undo_is_not_taken_back_silently() -> None:
    session = Session(Plan.uniform(geometry(), ""))
    session.begin(40, "prefill", undo=False)
    with pytest.raises(SessionError, match="undo=True"):
        session.abort()


def test_nothing_is_forked_saved_or_truncated_in_the_middle_of_a_step(tmp_path: Path) -> None:
    from headwise.engine.persist import save_session

    session = opened(Recipe(), Text.random(geometry(), PROMPT))
    session.begin(1, "decode")
    for what in (session.fork, lambda: session.truncate(3), lambda: save_session(session, tmp_path / "a.session")):
        with pytest.raises(SessionError, match="abort"):
            what()


def test_what_is_no_snapshot_of_this_session_is_not_restored() -> None:
    """Of another plan or element type; one of other rows and marks is, as rows may be selected in between."""
    plan, text = Plan.uniform(geometry(), small("kivi")), Text.random(geometry(), 140, rows=2)
    session = Session(plan, rows=2)
    feed(session, text, 0, PROMPT, "prefill")
    snapshot, before = session.snapshot(), state(session)
    for other in (Session(Plan.uniform(geometry(), small("kivi"))), Session(plan, dtype=torch.bfloat16)):
        with pytest.raises(SessionError, match=r"restore what its own snapshot\(\) gave"):
            session.restore(other)
    select_rows(session, [1])
    feed(session, text.rows([1]), PROMPT, 20, "decode")
    session.restore(snapshot)
    assert not differences(state(session), before)
    session.begin(1, "decode")
    session.restore(snapshot)
    assert not differences(state(session), before)
    feed(session, text, PROMPT, 20, "decode")
