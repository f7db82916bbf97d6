"""Accumulated attention mass: where queries read all there is, their own log-sum-exp tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.attention.byproducts import column_mass
from headwise.cache.extras import mass
from headwise.engine.group import Group
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.forms import Causal, Scoring
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import SCALE, Text, decode, geometry, prefill

H2O = "h2o(0.3, sinks=2, recent=6)"
READ_PARTLY = ["quest(16, sinks=0, recent=0, skip_layers=0)", "int8"]


def masses(text: Text, chunks: tuple[int, ...], steps: int, recipe: str = H2O) -> tuple[Session, list[torch.Tensor]]:
    """A session after chunks and steps of decoding, and the mass that its stores hold by layer and lane."""
    session = Session(Plan.uniform(geometry(), Recipe.parse(recipe)))
    prefill(session, text, chunks)
    decode(session, text, sum(chunks), steps)
    return session, [mass(group.store, lane, lane + 1) for group in session.groups for lane in range(2)]


@pytest.mark.parametrize("chunks", [(100,), (40, 30, 30)])
@pytest.mark.parametrize("steps", [1, 70])  # an eviction comes after 64
def test_equals_what_the_keys_tell(chunks: tuple[int, ...], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text.random(geometry(), 200)
    session, quick = masses(text, chunks, steps)
    assert all(bool(group.lses) == bool(group.uncounted) for group in session.groups)
    monkeypatch.setattr(Group, "keeps_lse", False)
    session, full = masses(text, chunks, steps)
    assert not any(group.lses for group in session.groups)
    torch.testing.assert_close(quick, full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", READ_PARTLY)
def test_is_not_asked_of_queries_that_read_otherwise(part: str) -> None:
    session, _ = masses(Text.random(geometry(), 120), (100,), 3, f"{H2O} | {part}")
    assert all(group.uncounted and not group.lses for group in session.groups)


def test_goes_back_is_forked_and_saved_with_its_queries(tmp_path: Path) -> None:
    session, _ = masses(Text.random(geometry(), 140), (100,), 30)
    session.truncate([127])
    save_session(session, tmp_path / "session")
    for one in (session, session.fork(), load_session(tmp_path / "session", session.plan)[0]):
        for group in one.groups:
            queries, lse = group.uncounted[0].all, group.lses[0].all
            assert lse.shape == queries.shape[:3] and lse.shape[2] == 27  # more than the kernel for a few takes
            keys = group.store.keys(0, 2)
            known = column_mass(queries, keys, Causal(), Scoring(SCALE), lse=lse)
            torch.testing.assert_close(
                known, column_mass(queries, keys, Causal(), Scoring(SCALE)), atol=1e-5, rtol=1e-4
            )
            torch.testing.assert_close(known.sum(), torch.tensor(2.0 * 2 * 27), atol=1e-2, rtol=0)
