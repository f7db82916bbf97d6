"""What random work found wrong: short prompts after each other, tokens that changed levels, merges in tiers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.cache.tiers import Tier
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import Text, decode, feed, geometry, kept
from tests.fuzz.rows import difference


def new(recipe: str, **how: object) -> Session:
    """An empty session under a recipe."""
    return Session(Plan.uniform(geometry(), recipe), **how)  # type: ignore[arg-type]


def test_queries_whose_pages_have_all_left_use_none() -> None:
    text, session = Text.random(geometry(), 34), new("raas(0.3, recent=6)")
    feed(session, text, 0, 17, "prefill")
    out = feed(session, text, 17, 17, "prefill")  # queries of the first prompt are looked at again
    assert out.isfinite().all()
    assert all(group.store.extras("notes", 0, 1).isfinite().all() for group in session.groups)


@pytest.mark.parametrize("recipe", ["zipvl_bits(0.2, last=16, drawn=1)", "h2o(0.5) | staircase"])
def test_tokens_that_went_to_a_level_late_are_loaded(recipe: str, tmp_path: Path) -> None:
    text, session = Text.random(geometry(), 130), new(recipe)
    feed(session, text, 0, 50, "prefill")
    decode(session, text, 50, 64)
    save_session(session, tmp_path / "session")
    loaded, _ = load_session(tmp_path / "session", session.plan)
    assert kept(loaded) == kept(session)
    assert torch.equal(decode(loaded, text, 114, 5), decode(session, text, 114, 5))


def test_a_lane_in_a_tier_that_merges_nothing(tmp_path: Path) -> None:
    text, recipe = Text.random(geometry(), 90), "cam(0.3, sinks=2, recent=0)"
    near, far = new(recipe), new(recipe, tier=Tier(2**16, tmp_path))
    for session in (near, far):
        feed(session, text, 0, 17, "prefill")
        decode(session, text, 17, 64)
    assert kept(near) == kept(far)
    torch.testing.assert_close(decode(near, text, 81, 4), decode(far, text, 81, 4))


def test_a_batch_that_once_differed_from_its_rows_does_not() -> None:
    sentence = "cam(0.3, sinks=5, recent=4) | uniform | zipvl_bits(memory=32) | qada(0.9, sinks=0, recent=64)"
    recipe = Recipe.parse(sentence)
    assert [difference(recipe, [15, 2, 16], 72, seed) for seed in range(3)] == [""] * 3


def test_a_session_that_went_back_to_the_start_is_loaded(tmp_path: Path) -> None:
    text, session = Text.random(geometry(), 40), new("h2o(0.5, sinks=2, recent=6)")
    feed(session, text, 0, 20, "prefill")
    decode(session, text, 20, 3)
    session.truncate(0)
    save_session(session, tmp_path / "session")
    loaded, _ = load_session(tmp_path / "session", session.plan)
    assert torch.equal(feed(loaded, text, 0, 20, "prefill"), feed(session, text, 0, 20, "prefill"))
