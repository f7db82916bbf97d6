"""ShotKV on marked examples: whole ones stay, in every way a prompt can come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.engine.session import Session
from headwise.methods.evict.shot_kv import ShotKV
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Mark
from tests.contract.drive import Text, decode, geometry, kept, prefill, run
from tests.methods.views import changed, make_view

EXAMPLES = tuple(Mark("example", start, start + 12) for start in range(0, 96, 12))


def shots(marks: tuple[Mark, ...] = EXAMPLES, budget: float = 0.4, chunks: tuple[int, ...] = (96,)) -> Session:
    recipe = Recipe(evict=ShotKV(budget, sinks=0, recent=0, window=8))
    session, _ = run(geometry(), recipe, Text.random(geometry(), 96), chunks, 0, marks=marks)
    return session


@pytest.mark.parametrize("chunks", [(96,), (40, 30, 26)])
def test_kept_tokens_are_whole_examples_the_same_in_all_heads(chunks: tuple[int, ...]) -> None:
    for layer in kept(shots(chunks=chunks)):
        assert layer[0][0] == layer[0][1]
        assert len(layer[0][0]) == 36  # three examples of twelve in 0.4 * 96 = 38 tokens
        for mark in EXAMPLES:
            inside = {p for p in layer[0][0] if mark.start <= p < mark.end}
            assert inside in (set(), set(range(mark.start, mark.end)))


def test_the_most_attended_examples_stay() -> None:
    session, text = shots(), Text.random(geometry(), 96)
    attention = torch.zeros(96)
    for head in range(4):
        scores = text.q[0, 0, head, -8:] @ text.k[0, 0, head // 2].T * 0.25
        later = torch.arange(96)[None] > torch.arange(88, 96)[:, None]
        attention += scores.masked_fill(later, -torch.inf).softmax(-1).sum(0)
    best = attention.view(8, 12).sum(1).argsort(descending=True)[:3].sort().values
    assert session.positions(0, 0, 0).view(3, 12)[:, 0].tolist() == (12 * best).tolist()


def test_an_example_too_long_for_the_budget_leaves_and_others_marks_mean_nothing() -> None:
    assert shots((Mark("example", 0, 96),), 0.4).lengths(0).tolist() == [[0, 0]]
    assert shots((Mark("image", 0, 96),), 0.4).lengths(0).tolist() == [[38, 38]]


def test_the_prompt_stays_while_generated_tokens_leave() -> None:
    text = Text.random(geometry(), 300)
    session = Session(Plan.uniform(geometry(), Recipe(evict=ShotKV(0.4, sinks=0, recent=4))), marks=EXAMPLES)
    prefill(session, text, [96])
    before = kept(session)
    decode(session, text, 96, 192)
    assert len({event.step for event in session.ledger.evictions}) > 2
    for was, now in zip(before, kept(session), strict=True):
        for head in range(2):
            assert [p for p in now[0][head] if p < 96] == was[0][head]
            assert len(now[0][head]) == round(0.4 * 288)


def test_scores_equal_the_slow_truth_with_marks_and_uneven_heads() -> None:
    view = make_view(100, 2, 20)
    gaps = torch.stack([torch.arange(100) * 2 + head for head in range(2)])
    marks = (Mark("example", 3, 40), Mark("image", 40, 60), Mark("example", 70, 111), Mark("example", 180, 260))
    view = changed(replace(view, positions=gaps, seen=201), query_positions=torch.arange(181, 201), marks=marks)
    for phase in ("prefill", "decode"):
        one = replace(view, phase=phase)
        torch.testing.assert_close(ShotKV().score(one).double(), ShotKV().plain(one), atol=1e-6, rtol=1e-4)
