"""Memory is what was promised: points 2 (counts equal the plan), 3 (protection) and 8 (bytes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from headwise.engine.session import Session
from headwise.errors import HeadwiseError, PlanNotApplied
from headwise.methods.budget import Budget
from headwise.methods.evict import Evict
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import all_methods, methods
from tests.contract.drive import SCALE, Text, decode, everything, feed, full, geometry, kept, names, prefill, run, small

EVICTING = [name for name in everything() if small(name).evict is not None]


def check_counts(session: Session, seen: int, least: int = 0) -> None:
    """Every row's heads hold what the plan counts for `seen` tokens, or `least` where more are protected."""
    for layer in range(len(session.plan.geometry.layers)):
        lengths = session.lengths(layer)
        recipe = session.plan.recipes[layer][0]
        planned = max(session.plan.count(recipe, layer, seen), least)
        if recipe.budget is None:
            assert (lengths == planned).all(), (layer, lengths, planned)
        assert (lengths.sum(1) == planned * lengths.shape[1]).all(), (layer, lengths, planned)


@pytest.mark.parametrize("chunks", [(100,), (30, 41, 29)])
@pytest.mark.parametrize("name", EVICTING)
def test_kept_counts_on_the_store_equal_the_plan(name: str, chunks: tuple[int, ...]) -> None:
    session, _ = run(geometry(), small(name), Text.random(geometry(), 106, rows=2), chunks, 0)
    check_counts(session, 100)
    assert int(session.lengths(0).max()) < 100
    for layer in kept(session):
        for positions in (head for row in layer for head in row):
            assert positions == sorted(set(positions))
            assert set(positions) <= set(range(100))


@pytest.mark.parametrize("name", EVICTING)
def test_decoding_evicts_to_the_plan_again(name: str) -> None:
    text = Text.random(geometry(), 240)
    session = Session(Plan.uniform(geometry(), small(name)))
    prefill(session, text, [100])
    most, step = 0, 100
    while len({e.step for e in session.ledger.evictions}) < 2 and step < 240:
        decode(session, text, step, 1)
        step += 1
        most = max(most, int(session.lengths(0).sum()))
    assert step < 240, "no eviction in 140 decode steps"
    check_counts(session, step)
    assert most > int(session.lengths(0).sum())


@pytest.mark.parametrize("name", EVICTING)
def test_the_ledger_tells_what_was_kept(name: str) -> None:
    session, _ = run(geometry(), small(name), Text.random(geometry(), 100), [100], 0)
    assert {record.layer for record in session.ledger.evictions} == {0, 1}
    for record in session.ledger.evictions:
        held = [int(session.lengths(record.layer)[record.row, head]) for head in record.heads]
        assert list(record.kept) == held
        assert record.seen == 100
        assert all(-1e-5 <= lost <= 1 for lost in record.lost_mass)


@dataclass(frozen=True)
class Allots(Budget):
    """Gives every head `each`, whatever the plan says."""

    name = "allots"
    each: int = 0

    def allot(self, scores: torch.Tensor, protect: torch.Tensor, count: int) -> torch.Tensor:
        return torch.full((len(scores),), self.each)


@pytest.mark.parametrize("each", [1, 15, 19, 21, 60])
def test_a_store_that_does_not_hold_the_plan_raises(each: int) -> None:
    recipe = Recipe(evict=methods("evict")["streaming"](20, sinks=0, recent=0), budget=Allots(each))
    session = Session(Plan.uniform(geometry(), recipe))
    with pytest.raises(PlanNotApplied, match="20"):
        prefill(session, Text.random(geometry(), 100), [100])


def test_lost_mass_is_the_attention_that_fell_on_evicted_tokens() -> None:
    text = Text.random(geometry(), 100)
    session, _ = run(geometry(), small("streaming"), text, [100], 0)
    for record in session.ledger.evictions:
        for head, lost in zip(record.heads, record.lost_mass, strict=True):
            gone = torch.ones(100, dtype=torch.bool)
            gone[session.positions(record.layer, 0, head)] = False
            queries = text.q[record.layer, 0, 2 * head : 2 * head + 2, -32:]
            scores = queries @ text.k[record.layer, 0, head].T * SCALE
            weights = scores.masked_fill(torch.ones(32, 100, dtype=torch.bool).triu(69), -torch.inf).softmax(-1)
            assert lost == pytest.approx(float(weights[..., gone].sum(-1).mean()), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVICTING)
def test_protected_tokens_survive_ties(name: str, dtype: torch.dtype) -> None:
    shape = geometry()
    same = Text(*(torch.ones_like(x) for x in vars(Text.random(shape, 100, dtype=dtype)).values()))
    session = Session(Plan.uniform(shape, small(name)).protecting((40, 45)), dtype=dtype)
    prefill(session, same, [100])
    evict = small(name).evict
    due = {*range(evict.sinks), *range(100 - evict.recent, 100), *range(40, 45)}
    assert all(due <= set(head) for layer in kept(session) for row in layer for head in row)


@dataclass(frozen=True)
class Filled(Evict):
    """Scores everything alike, `marked` positions otherwise."""

    value: Any = 0.0
    other: Any = 0.0
    marked: tuple[int, ...] = ()

    def score(self, view: Any) -> torch.Tensor:
        score = torch.full(view.positions.shape, self.value)
        return score.masked_fill(torch.isin(view.positions, torch.tensor(self.marked)), self.other)


@pytest.mark.parametrize("budget", [None, *methods("budget")])
@pytest.mark.parametrize(("value", "other"), [(torch.inf, -torch.inf), (0.0, -torch.inf), (-torch.inf, 0.0)])
def test_protected_tokens_survive_infinite_scores(value: float, other: float, budget: str | None) -> None:
    evict = Filled(20, sinks=2, recent=6, value=value, other=other, marked=(0, 1, 41, 97))
    recipe = Recipe(evict=evict, budget=methods("budget")[budget]() if budget else None)
    session = Session(Plan.uniform(geometry(), recipe).protecting((40, 45)))
    prefill(session, Text.random(geometry(), 100), [100])
    due = {0, 1, *range(94, 100), *range(40, 45)}
    assert all(due <= set(head) for layer in kept(session) for row in layer for head in row)
    check_counts(session, 100, least=len(due))


@pytest.mark.parametrize("name", [n for n in names("evict", "select") if all_methods()[n].needs])
def test_nan_raises_and_the_session_can_go_back(name: str) -> None:
    text = Text.random(geometry(), 110)
    session = Session(Plan.uniform(geometry(), small(name)))
    prefill(session, text, [50])
    before = kept(session)
    text.k[:, :, 1, 105] = float("nan")
    steps = [("prefill", 50, 60)] if small(name).evict else [("decode", 105, 1), ("decode", 106, 1)]
    with pytest.raises(HeadwiseError, match="NaN"):
        for phase, start, count in steps:
            feed(session, text, start, count, phase)
    session.abort()
    assert session.seen == [50]
    assert kept(session) == before


def storages(thing: Any, found: dict[int, int], visited: set[int]) -> dict[int, int]:
    """Bytes of every tensor storage that can be reached from `thing`, by address."""
    if id(thing) in visited or isinstance(thing, Plan | type | str | int | float):
        return found
    visited.add(id(thing))
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return found
    inner = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    for one in [*inner, *getattr(thing, "__dict__", {}).values()]:
        storages(one, found, visited)
    return found


@pytest.mark.parametrize("name", ["dense", *everything()])
def test_bytes_are_real_and_within_a_tenth_of_the_prediction(name: str) -> None:
    shape = geometry()
    recipe = Recipe() if name == "dense" else small(name)
    text = Text.random(shape, 640)
    session = Session(Plan.uniform(shape, recipe))
    prefill(session, text, [600])
    for start in (600, 620):
        reached = sum(storages(session, {}, set()).values())
        assert session.nbytes() <= reached <= 1.02 * session.nbytes() + 4096
        assert session.nbytes() <= 1.1 * session.predicted_bytes()
        decode(session, text, start, 20)
    if recipe.evict is not None:
        assert session.nbytes() < 0.6 * session.dense_bytes()


@pytest.mark.parametrize("name", [n for n in EVICTING if small(n).prefill is None and not small(n).evict.rehearsal])
def test_the_full_cache_is_never_resident_in_chunks(name: str) -> None:
    shape = geometry()
    text = Text.random(shape, 640)
    session, _ = run(shape, small(name), text, [64] * 10, 0)
    whole, _ = run(shape, small(name), text, [640], 0)
    layers = len(shape.layers)
    chunk = session.dense_bytes() // 10 // layers
    assert session.ledger.peak_bytes <= 1.25 * (session.predicted_bytes() + 2 * chunk)
    assert session.ledger.peak_bytes < 0.75 * whole.ledger.peak_bytes


@pytest.mark.parametrize("name", [n for n in EVICTING if small(n).evict.rehearsal])
def test_what_is_read_again_is_resident_until_then_and_no_longer(name: str) -> None:
    text = Text.random(geometry(), 640)
    session, _ = run(geometry(), small(name), text, [64] * 10, 0)
    assert 1.1 * session.dense_bytes() >= session.ledger.peak_bytes >= session.dense_bytes()
    assert session.nbytes() < 0.4 * session.dense_bytes()


@pytest.mark.parametrize("name", names("evict", "budget"))
def test_a_plan_of_nothing_is_dense_to_the_byte(name: str) -> None:
    text = Text.random(geometry(), 120)
    dense, _ = run(geometry(), Recipe(), text, [100], 20)
    session, _ = run(geometry(), full(name), text, [100], 20)
    assert kept(session) == kept(dense)
    assert not session.ledger.evictions
