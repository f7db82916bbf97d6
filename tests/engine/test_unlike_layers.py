"""Layers that differ in heads and widths are each served as in a model of such layers, and hold the bytes foretold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from headwise.cache.tiers import Tier
from headwise.cost.prediction import predicted_bytes
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import PlanError, SessionError, ShapeError
from headwise.forms import Scoring
from headwise.geometry import Geometry, LayerGeometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import everything, small
from tests.engine.ragged import UNLIKE, calls, drawn, feed, run

ALONE = [  # recipes under which no layer minds the others, nor its own number
    "", "int8", "int4(16)", "streaming(0.3)", "snapkv(0.3, window=8) | int4(16)", "h2o(0.4, sinks=2, recent=6)",
    "expected_attention(0.4)", "a_shape(4, window=32)", "kivi(window=8, group=16)", "quest(16, skip_layers=0)",
]  # fmt: skip
ROUNDED = ("ada", "zipvl")  # how many pages these fill depends on what is read, also where layers are alike
REFUSED = ("tidal",)  # its heads read what heads of their number chose in layers before, see test_memory.py
EXACT = [one for one in everything() if not any(name in one for name in (*ROUNDED, *REFUSED))]


def recipe_of(name: str) -> Recipe:
    return small(name) if name else Recipe()


@pytest.mark.parametrize("sentence", ALONE)
@pytest.mark.parametrize("chunks", [(100,), (40, 37, 23)])
def test_every_layer_gives_what_it_gives_in_a_model_of_its_own(sentence: str, chunks: tuple[int, ...]) -> None:
    given = calls(UNLIKE, 110)
    session = Session(Plan.uniform(UNLIKE, sentence))
    for layer, out in enumerate(run(session, given, chunks, 10)):
        single = Session(Plan.uniform(Geometry(UNLIKE.layers[layer : layer + 1], 4096), sentence))
        (expected,) = run(single, given[layer : layer + 1], chunks, 10)
        assert torch.equal(out, expected), layer
        assert torch.equal(session.lengths(layer), single.lengths(0))


@pytest.mark.parametrize("name", EXACT)
def test_bytes_predicted_are_bytes_held_whatever_the_method(name: str) -> None:
    plan, given = Plan.uniform(UNLIKE, recipe_of(name)), calls(UNLIKE, 106)
    session = Session(plan)
    run(session, given, [100], 0)
    assert session.cache_bytes() - session.memories.nbytes == predicted_bytes(plan, 100, torch.float32)
    for step in range(6):
        assert all(out.isfinite().all() for out in feed(session, given, 100 + step, 1, "decode"))
    assert session.cache_bytes() == session.predicted_bytes()


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_cannot_serve_every_head_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"head 2 read what layer 0 chose .* has 2 heads"):
        Plan.uniform(UNLIKE, recipe_of(name))


@pytest.mark.parametrize("seed", range(12))
def test_bytes_predicted_are_bytes_held_whatever_the_model(seed: int) -> None:
    """Random geometries, random recipes of every head, prompts in random chunks."""
    draw, shape = Random(seed), drawn(seed)
    menu = [Recipe.parse(one) for one in ALONE]
    plan = Plan(shape, tuple(tuple(draw.choice(menu) for _ in range(heads)) for heads in shape.kv_heads))
    chunks = [draw.randint(20, 90) for _ in range(draw.randint(1, 3))]
    tokens, dtype = sum(chunks), draw.choice((torch.float32, torch.bfloat16))
    session = Session(plan, dtype=dtype)
    run(session, [tuple(x.to(dtype) for x in one) for one in calls(shape, tokens, seed=seed)], chunks, 0)
    assert session.cache_bytes() == session.predicted_bytes() == predicted_bytes(plan, tokens, dtype)
    assert session.dense_bytes() == shape.dense_bytes(tokens, dtype)


def test_a_budget_in_bytes_holds_over_all_layers() -> None:
    session = Session(Plan.uniform(UNLIKE, "streaming('96KiB', recent=6)"))
    run(session, calls(UNLIKE, 600), [300, 300], 0)
    assert 0.8 * 96 * 1024 <= session.cache_bytes() <= 96 * 1024


@pytest.mark.parametrize("sentence", ["h2o(0.4, sinks=2, recent=6) | int8", "ltri(16, sinks=2, recent=6)"])
def test_saved_forked_cut_back_and_taken_back_it_goes_on_the_same(sentence: str, tmp_path: Path) -> None:
    given = calls(UNLIKE, 120, rows=2)
    session = Session(Plan.uniform(UNLIKE, sentence), rows=2)
    run(session, given, [60, 40], 4)
    save_session(session, tmp_path / "a.session")
    session.plan.save(tmp_path / "a.plan")
    loaded, _ = load_session(tmp_path / "a.session", Plan.read(tmp_path / "a.plan"))
    fork, cut, back = session.fork(), session.fork(), session.fork()
    feed(cut, given, 104, 2, "decode")
    cut.truncate(104)
    back.begin(3, "decode")
    back.step(0, *(x[:, :, 104:107] for x in given[0]), Scoring(0.2))
    back.abort()
    expected = feed(session, given, 104, 1, "decode")
    for other in (loaded, fork, cut, back):
        for one, two in zip(feed(other, given, 104, 1, "decode"), expected, strict=True):
            assert torch.equal(one, two)


def test_a_tier_is_shared_by_what_stores_hold_of_a_token() -> None:
    given = calls(UNLIKE, 140)
    session = Session(Plan.uniform(UNLIKE, "int8"), tier=Tier(48 * 1024))
    whole = Session(Plan.uniform(UNLIKE, "int8"))
    for near, far in zip(run(whole, given, [100], 20), run(session, given, [100], 20), strict=True):
        torch.testing.assert_close(far, near, atol=1e-5, rtol=1e-5)
    shares = [group.store.tier.part for layer in (0, 1, 3) for group in session.layers[layer]]
    assert sum(shares) == 1 and shares[1] == 3 * shares[0]


def test_heads_of_each_layer_are_asked_and_told() -> None:
    session = Session(Plan.uniform(UNLIKE, "streaming(0.3)"))
    run(session, calls(UNLIKE, 100), [100], 0)
    assert [tuple(session.lengths(layer).shape) for layer in range(4)] == [(1, 2), (1, 3), (1, 4), (1, 1)]
    assert [len(row) for row in session.ledger.lost_mass(UNLIKE.kv_heads)] == [2, 3, 4, 1]
    assert "layer   3" in session.report()
    with pytest.raises(SessionError, match="layer 3 has no KV head 1; heads are 0 to 0"):
        session.positions(3, 0, 1)
    session.begin(1, "decode")
    with pytest.raises(ShapeError, match="H=6"):
        session.step(1, *(x[:, :, :1] for x in calls(UNLIKE, 1)[0]), Scoring(0.2))


def test_layers_that_do_not_attend_are_no_part_of_a_step_nor_of_what_budgets_share() -> None:
    given = calls(UNLIKE, 110)
    apart = replace(UNLIKE, layers=(LayerGeometry(0, 0, 0, 0, kind="state", state=5), *UNLIKE.layers))
    for sentence in ("snapkv(0.3, window=8) | int8", "pyramid | h2o(0.4)"):
        session, alone = Session(Plan.uniform(apart, sentence)), Session(Plan.uniform(UNLIKE, sentence))
        session.begin(110, "prefill")
        alone.begin(110, "prefill")
        for layer, (q, k, v) in enumerate(given):
            out = session.step(layer + 1, q, k, v, Scoring(q.shape[-1] ** -0.5))
            assert torch.equal(out, alone.step(layer, q, k, v, Scoring(q.shape[-1] ** -0.5)))
            assert torch.equal(session.lengths(layer + 1), alone.lengths(layer))
        assert session.layers[0] == [] and session.cache_bytes() == alone.cache_bytes()
