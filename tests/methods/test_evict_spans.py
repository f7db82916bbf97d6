"""ShotKV on marked examples: whole ones stay, in every way a prompt can come. CaM: what leaves is taken in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.engine.session import Session
from headwise.methods.evict.cam import CaM
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


@pytest.mark.parametrize("merge", [1, 5, 500])
def test_evicted_values_go_to_the_next_kept_ones(merge: int) -> None:
    view = make_view(60)
    stays = torch.rand(2, 60, generator=torch.Generator().manual_seed(3)) < 0.4
    found, truth = CaM(merge=merge).merged(view, stays), view.values.double().clone()
    assert found is not None
    for head in range(2):
        for i in range(60):
            takers = [j for j in range(i + 1, 60) if stays[head, j]][:merge]
            if not stays[head, i] and takers:
                average = sum(float(view.mass[head, j]) for j in takers) / len(takers)
                part = min(1.0, float(view.mass[head, i]) / average) / len(takers)
                for j in takers:
                    truth[head, j] += part * view.values[head, i].double()
    torch.testing.assert_close(found[stays].double(), truth[stays], atol=1e-4, rtol=1e-4)


def test_merging_nothing_changes_nothing() -> None:
    view = make_view(60)
    assert torch.equal(CaM().merged(view, torch.ones(2, 60, dtype=torch.bool)), view.values)
    assert CaM(merge=0).merged(view, torch.zeros(2, 60, dtype=torch.bool)) is None


@pytest.mark.parametrize("codec", ["", " | int8", " | kivi(window=8, group=16)", " | ada"])
def test_merged_values_are_stored_where_their_tokens_lie(codec: str) -> None:
    """As the unmerged ones, taken in by hand: to rounding by the codec, the same tokens kept."""
    text, said = Text.random(geometry(), 96), "cam(0.4, sinks=2, recent=6, merge={})" + codec
    merged, bare = (run(geometry(), Recipe.parse(said.format(m)), text, [96], 0)[0] for m in (4, 0))
    assert kept(merged) == kept(bare)
    for one, other in zip(merged.stores(0), bare.stores(0), strict=True):
        lane = one.segment(0, 1), other.segment(0, 1)
        assert torch.equal(lane[0].keys, lane[1].keys)
        assert not torch.allclose(lane[0].values, lane[1].values, atol=0.05)
