"""Ctrl-C is often pressed twice: an `abort` that is interrupted goes back when it is called again."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwise.cache import pages
from headwise.cache.tiers import Tier
from headwise.engine.session import Session
from headwise.plan import Plan
from tests.contract.drive import Text, feed, geometry, layer_by_layer
from tests.fuzz.faults import Interrupted, Lines
from tests.fuzz.state import differences, state

PROMPT, DRAFT = 100, 16
RECIPES = (
    "cam(0.3, sinks=2, recent=6) | int8",
    "h2o(0.4, sinks=2, recent=6) | kivi(window=8, group=16)",
    "razor(0.3, sinks=2, recent=6)",
    "xkv(window=8)",
    "tidal(8, sinks=0, recent=2)",
)


def opened(recipe: str, text: Text, tier: Tier | None = None) -> Session:
    """A session one draft before its next eviction."""
    session = Session(Plan.uniform(geometry(), recipe), tier=tier)
    feed(session, text, 0, PROMPT, "prefill")
    for draft in range(3):
        feed(session, text, PROMPT + draft * DRAFT, DRAFT, "decode")
    return session


def evicting(session: Session, text: Text) -> None:
    """A step that evicts, and is not committed."""
    session.begin(DRAFT, "decode")
    list(layer_by_layer(session, text, PROMPT + 3 * DRAFT, DRAFT))


def check(session: Session, text: Text, places: range) -> None:
    """Interrupt `abort` before these lines of it: called again, it goes back all the same."""
    before, near = state(session), (".bytes",) if session.tier is not None else ()  # which pages are near is no state
    for line in places:
        evicting(session, text)
        with Lines(line):
            try:
                session.abort()
                break
            except Interrupted as planted:
                place = str(planted)
        session.abort()
        assert not differences(before, state(session), near), f"interrupted at {place}"
    assert places.start < line < places.stop - places.step, "it was interrupted, and ran through in the end"
    assert not differences(before, state(session), near)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_abort_is_called_again(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PART", 8)
    text = Text.random(geometry(), PROMPT + 4 * DRAFT)
    check(opened(recipe, text), text, range(1, 4000, 23))


def test_an_interrupted_abort_is_called_again_where_pages_lie_in_a_file(tmp_path: Path) -> None:
    text = Text.random(geometry(), PROMPT + 4 * DRAFT)
    check(opened("cam(0.3, sinks=2, recent=6)", text, Tier(32 << 10, tmp_path)), text, range(1, 4000, 29))


def test_an_interrupted_begin_does_not_take_back_the_step_before(tmp_path: Path) -> None:
    """Also where nobody has committed that step: to begin the next one says that it has succeeded."""
    text = Text.random(geometry(), PROMPT + 4 * DRAFT)
    before = opened("h2o(0.3, sinks=2, recent=6)", text, Tier(32 << 10, tmp_path))
    for line in range(60, 2000, 47):  # behind what `begin` refuses
        session = before.fork()
        evicting(session, text)
        after = state(session)
        with Lines(line):
            try:
                session.begin(1, "decode")
                break
            except Interrupted as planted:
                place = str(planted)
        session.abort()
        assert not differences(after, state(session)), f"interrupted at {place}"
    assert line > 100
