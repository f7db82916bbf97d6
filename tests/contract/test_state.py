"""A session can be left and taken up: points 10 (turns, truncate, snapshot, files), 11 (pages), 14 (types, seeds)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import headwise.cache.pages as paging
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Scoring
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from tests.contract import dense
from tests.contract.drive import (
    SCALE,
    Text,
    columns,
    decode,
    everything,
    feed,
    full,
    geometry,
    kept,
    names,
    prefill,
    rehearse,
    run,
    small,
)

ALL = ["dense", *everything()]


def started(name: str, text: Text, prompt: int = 60, seed: int = 0) -> Session:
    """A session that has seen a prompt."""
    recipe = Recipe() if name == "dense" else small(name)
    session = Session(Plan.uniform(geometry(), recipe), rows=text.q.shape[1], dtype=text.q.dtype, seed=seed)
    prefill(session, text, [prompt])
    return session


def two_turns(session: Session, text: Text, start: int) -> torch.Tensor:
    """A second turn of 30 tokens and 4 answers: all outputs."""
    prompt = feed(session, text, start, 30, "prefill")
    return torch.cat([prompt, decode(session, text, start + 30, 4)], dim=3)


@pytest.mark.parametrize("name", ["dense", *names("prefill", "evict", "budget", "select")])
def test_turns_at_full_budget_equal_dense(name: str) -> None:
    text = Text.random(geometry(), 104)
    recipe = Recipe() if name == "dense" else full(name)
    session = Session(Plan.uniform(geometry(), recipe))
    outs = [prefill(session, text, [60]), decode(session, text, 60, 10), two_turns(session, text, 70)]
    torch.testing.assert_close(torch.cat(outs, dim=3).double(), dense.all_causal(text), atol=1e-5, rtol=1e-5)


def absorbed(name: str, text: Text, prompt: int = 60) -> Session:
    """A session that was given a prompt whose attention is known."""
    session = Session(Plan.uniform(geometry(), Recipe() if name == "dense" else small(name)), rows=text.q.shape[1])
    session.begin(prompt, "prefill", total=prompt, ids=columns(session.rows, 0, prompt))
    for layer in range(2):
        q, k, v = (x[layer, :, :, :prompt] for x in (text.q, text.k, text.v))
        session.absorb(layer, q, k, v, Scoring(SCALE))
    rehearse(session, text)
    return session


@pytest.mark.parametrize("name", ALL)
def test_a_prompt_absorbed_leaves_what_a_prompt_read_leaves(name: str, tmp_path: Path) -> None:
    text = Text.random(geometry(), 104, rows=2)
    read, given = started(name, text), absorbed(name, text)
    save_session(read, tmp_path / "read")
    save_session(given, tmp_path / "given")
    assert (tmp_path / "read").read_bytes() == (tmp_path / "given").read_bytes()
    attends = any(group.keeps_lse for group in given.groups)
    assert read.ledger.backends.total() and bool(given.ledger.backends.total()) == attends
    assert read.ledger.evictions == given.ledger.evictions
    assert torch.equal(two_turns(read, text, 60), two_turns(given, text, 60))
    with pytest.raises(SessionError, match="94 tokens came before"):
        given.begin(1, "decode")
        given.absorb(0, text.q[0, :, :, :1], text.k[0, :, :, :1], text.v[0, :, :, :1], Scoring(SCALE))


@pytest.mark.parametrize("name", ALL)
def test_turns_evict_to_the_plan(name: str) -> None:
    text = Text.random(geometry(), 104)
    session = started(name, text)
    decode(session, text, 60, 10)
    feed(session, text, 70, 30, "prefill")
    assert session.seen == [100]
    for layer in range(2):
        recipe = session.plan.recipes[layer][0]
        assert int(session.lengths(layer).sum()) == 2 * session.plan.count(recipe, layer, 100)


@pytest.mark.parametrize("name", ALL)
def test_truncate_goes_back_as_if_later_tokens_had_never_come(name: str) -> None:
    text, other = Text.random(geometry(), 100), Text.random(geometry(), 100, seed=1)
    session = started(name, text)
    before, expected = kept(session), decode(session.fork(), text, 60, 5)
    decode(session, other, 60, 7)
    session.truncate(60)
    assert kept(session) == before
    assert session.seen == [60]
    assert torch.equal(decode(session, text, 60, 5), expected)


@pytest.mark.parametrize("name", ALL)
def test_evictions_after_truncate_are_as_if_later_tokens_had_never_come(name: str) -> None:
    text, other = Text.random(geometry(), 100), Text.random(geometry(), 100, seed=1)
    session = started(name, text)
    untouched = session.fork()
    decode(session, other, 60, 7)
    session.truncate(60)
    for one in (session, untouched):
        two_turns(one, text, 60)
    assert kept(session) == kept(untouched)


@pytest.mark.parametrize("name", ALL)
def test_truncate_rows_by_different_amounts(name: str) -> None:
    text = Text.random(geometry(), 100, rows=2)
    session = started(name, text)
    before = kept(session)
    decode(session, text, 60, 6)
    session.truncate([60, 63])
    for layer, have in zip(before, kept(session), strict=True):
        assert have == [layer[0], [[*head, 60, 61, 62] for head in layer[1]]]
    after = decode(session.fork(), text, 63, 3)
    for row, end in enumerate((60, 63)):
        own = text.rows([row])
        alone = started(name, own)
        decode(alone, own, 60, 6)
        alone.truncate([end])
        torch.testing.assert_close(after[:, row : row + 1], decode(alone, own, 63, 3), atol=1e-5, rtol=1e-5)
    with pytest.raises(SessionError, match="row 0"):
        session.truncate([61, 63])


@pytest.mark.parametrize("name", ALL)
def test_forks_and_snapshots_are_independent(name: str) -> None:
    text, other = Text.random(geometry(), 100), Text.random(geometry(), 100, seed=1)
    session = started(name, text)
    decode(session, text, 60, 3)
    snapshot, fork = session.snapshot(), session.fork()
    expected = two_turns(session, text, 63)
    two_turns(fork, other, 63)
    for _ in range(2):
        session.restore(snapshot)
        assert torch.equal(two_turns(session, text, 63), expected)


@pytest.mark.parametrize("name", ALL)
def test_a_fork_writes_nothing_into_its_origin(name: str) -> None:
    text, other = Text.random(geometry(), 100), Text.random(geometry(), 100, seed=1)
    session = started(name, text)
    expected = decode(session.fork(), text, 60, 6)
    fork = session.fork()
    for step in range(60, 66):
        assert torch.equal(decode(session, text, step, 1), expected[..., step - 60 : step - 59, :])
        decode(fork, other, step, 1)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_session_goes_on_token_for_token(name: str, tmp_path: Path) -> None:
    text = Text.random(geometry(), 100, rows=2)
    session = started(name, text)
    decode(session, text, 60, 3)
    save_session(session, tmp_path / "session", {"note": 7})
    loaded, extra = load_session(tmp_path / "session", session.plan)
    assert extra == {"note": 7}
    assert kept(loaded) == kept(session)
    assert torch.equal(two_turns(loaded, text, 63), two_turns(session, text, 63))
    assert kept(loaded) == kept(session)
    wrong = Plan.uniform(geometry(), Recipe(evict=methods("evict")["streaming"](17, sinks=2, recent=6)))
    with pytest.raises(SessionError, match="plan"):
        load_session(tmp_path / "session", wrong)


def poisoned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Fresh memory that shows when it is read: NaN, or the largest integer."""
    poison = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(shape, poison, dtype=dtype, device=device)


@pytest.mark.parametrize("name", ALL)
def test_fresh_memory_and_the_order_of_pages_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text.random(geometry(), 100, rows=2)
    clean = started(name, text)
    expected = [decode(clean, text, 60, 3), two_turns(clean, text, 63)]
    monkeypatch.setattr(paging, "fresh", poisoned)
    session = started(name, text)
    generator = torch.Generator().manual_seed(0)

    def shuffle() -> None:
        for store in (store for layer in range(2) for store in session.stores(layer)):
            store.permute_pages(generator)

    shuffle()
    out = decode(session, text, 60, 3)
    torch.testing.assert_close(out, expected[0], atol=1e-6, rtol=1e-6)
    shuffle()
    torch.testing.assert_close(two_turns(session, text, 63), expected[1], atol=1e-6, rtol=1e-6)
    assert kept(session) == kept(clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_every_type_decodes_what_it_kept(name: str, dtype: torch.dtype) -> None:
    text = Text.random(geometry(), 106, dtype=dtype)
    session = started(name, text, 100)
    stored = [[[[*have, *range(100, 106)] for have in row] for row in layer] for layer in kept(session)]
    held = dense.as_held(session, text, stored)
    out = decode(session, text, 100, 6)
    assert out.dtype == dtype
    assert out.isfinite().all()
    recipe = session.plan.recipes[0][0]
    if recipe.select is None:
        truth = dense.over_kept(held, recipe, stored, 100)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
        torch.testing.assert_close(out.double(), truth, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    text = Text.random(geometry(), 104)
    recipe = Recipe() if name == "dense" else small(name)
    (one, out), (two, again) = (run(geometry(), recipe, text, (60, 40), 4, seed=3) for _ in range(2))
    assert torch.equal(out, again)
    assert kept(one) == kept(two)


def test_rows_cut_unevenly_count_the_columns_of_the_longest() -> None:
    text = Text.random(geometry(), 60, rows=2)
    session = Session(Plan.uniform(geometry(), Recipe()), rows=2)
    prefill(session, text, [40])
    session.truncate([40, 10])
    assert (session.passed, session.seen) == (40, [40, 10])
    session.truncate([30, 0])
    assert (session.passed, session.seen) == (30, [30, 0])
