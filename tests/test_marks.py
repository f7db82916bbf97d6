"""Marks: named ranges of a prompt are checked, found by characters, and travel with a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Mark
from tests.contract.drive import Text, geometry, prefill


@pytest.mark.parametrize("wrong", [("image", 4, 4), ("image", -1, 4), ("image", 5, 4), ("", 0, 4), ("image", 0, 4, -1)])
def test_a_mark_that_marks_nothing_is_refused(wrong: tuple[str, int, int]) -> None:
    with pytest.raises(HeadwiseError, match="mark"):
        Mark(*wrong)


def test_marks_are_found_by_characters() -> None:
    offsets = [(0, 0), (0, 3), (3, 4), (4, 9), (9, 12)]  # the opening token writes no character
    assert Mark.of_text("word", offsets, 3, 9) == Mark("word", 2, 4)
    assert Mark.of_text("word", offsets, 5, 6, row=2) == Mark("word", 3, 4, 2)
    assert Mark.of_text("all", offsets, 0, 99) == Mark("all", 1, 5)
    with pytest.raises(HeadwiseError, match="12 to 15"):
        Mark.of_text("word", offsets, 12, 15)


def test_overlapping_marks_of_a_kind_and_missing_rows_are_refused() -> None:
    plan = Plan.uniform(geometry(), "")
    kept = [Mark("image", 0, 9), Mark("image", 9, 12), Mark("text", 3, 12), Mark("image", 0, 9, row=1)]
    assert Session(plan, rows=2, marks=kept).marks == tuple(sorted(kept, key=lambda mark: mark.start))
    with pytest.raises(HeadwiseError, match="overlap"):
        Session(plan, marks=[Mark("image", 0, 9), Mark("image", 8, 12)])
    with pytest.raises(HeadwiseError, match="rows are 0 to 0"):
        Session(plan, marks=kept)


def test_marks_are_saved_and_forked_with_the_session(tmp_path: Path) -> None:
    plan, marks = Plan.uniform(geometry(), Recipe()), (Mark("example", 2, 5), Mark("example", 5, 7))
    session = Session(plan, marks=marks)
    prefill(session, Text.random(geometry(), 20), [20])
    save_session(session, tmp_path / "one")
    loaded, _ = load_session(tmp_path / "one", plan)
    assert loaded.marks == session.fork().marks == marks
    assert torch.equal(loaded.positions(0, 0, 0), session.positions(0, 0, 0))
