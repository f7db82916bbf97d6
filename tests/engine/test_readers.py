"""Layers that read what an earlier layer stores: by that layer's recipe, with their own queries, counted once."""

from __future__ import annotations

import json

import pytest
import torch

from headwise.engine.drafted import begin_drafted
from headwise.engine.session import Session
from headwise.errors import PlanError, SessionError, ShapeError
from headwise.forms import Scoring
from headwise.geometry import Geometry, GeometryFacts, LayerGeometry
from headwise.plan import Plan

OWNER = LayerGeometry(4, 2, 16, 16)
READER = LayerGeometry(4, 0, 0, 0, kind="reader", reads=0)
SHAPE = Geometry((OWNER, READER), 512)
SCORING = Scoring(0.25)


def made(recipe: str, rows: int = 1, shape: Geometry = SHAPE) -> Session:
    return Session(Plan.uniform(shape, recipe), rows=rows)


def drawn(tokens: int, rows: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Queries of the owner and of the reader, keys and values."""
    torch.manual_seed(seed)
    heads = (4, 4, 2, 2)
    return tuple(torch.randn(rows, count, tokens, 16) for count in heads)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention written out, the queries being of the last tokens."""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]).logical_not()
    return (q @ k.mT * 0.25).masked_fill(hidden, -torch.inf).softmax(-1) @ v


def prompt(session: Session, tokens: int = 60, few: int | None = None) -> torch.Tensor:
    """What the reader makes of a prompt, of its last `few` tokens."""
    q, own, k, v = drawn(tokens, session.rows)
    session.begin(tokens, "prefill")
    session.step(0, q, k, v, SCORING)
    return session.follow(1, own[:, :, -(few or tokens) :], k, v, SCORING)


def reads_before_evictions(recipe: str) -> bool:
    """Whether the reader sees a prompt's second piece behind all that was kept of the first, and both are evicted
    behind it."""
    session = made(recipe)
    _, own, k, v = drawn(60)
    same = torch.allclose(prompt(session), dense(own, k, v), atol=1e-5)
    (store,) = session.stores(0)
    kept, before = store.segment(0, 2), store.lengths[0]
    q, own, k, v = drawn(20, seed=1)
    session.begin(20, "prefill")
    session.step(0, q, k, v, SCORING)
    found = session.follow(1, own, k, v, SCORING)
    keys, values = torch.cat((kept.keys[None], k), 2), torch.cat((kept.values[None], v), 2)
    same = same and torch.allclose(found, dense(own, keys, values), atol=1e-5)
    return same and before < 60 and store.lengths[0] < before + 20


@pytest.mark.parametrize("recipe", ["streaming(0.3)", "snapkv(0.3)", "h2o(0.3)"])
def test_a_prompt_is_evicted_when_its_readers_are_through(recipe: str) -> None:
    assert reads_before_evictions(recipe)


def test_a_session_that_evicts_before_its_readers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Geometry, "readers", lambda self, layer: frozenset())
    assert not reads_before_evictions("streaming(0.3)")


@pytest.mark.parametrize("recipe", ["", "streaming(0.3)", "snapkv(0.3) | int8"])
def test_a_new_token_reads_what_the_owner_keeps(recipe: str) -> None:
    session = made(recipe)
    prompt(session)
    q, own, k, v = drawn(1, seed=1)
    session.begin(1, "decode")
    session.step(0, q, k, v, SCORING)
    found = session.follow(1, own, k, v, SCORING)
    held = [one.segment(0, 2) for one in session.stores(0)]
    assert len(held) == 1
    torch.testing.assert_close(found, dense(own, held[0].keys[None], held[0].values[None]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("few", [1, 7])
def test_queries_may_be_of_the_last_tokens_alone(few: int) -> None:
    torch.testing.assert_close(prompt(made(""), few=few), prompt(made(""))[:, :, -few:])


def test_rows_of_padding_read_nothing() -> None:
    q, own, k, v = drawn(20, rows=2)
    live = torch.ones(2, 20, dtype=torch.bool)
    live[0, :12] = False
    session = made("", rows=2)
    session.begin(20, "prefill", live)
    session.step(0, q, k, v, SCORING)
    found = session.follow(1, own[:, :, -10:], k, v, SCORING)
    torch.testing.assert_close(found[:1, :, 2:], dense(own[:1, :, 12:], k[:1, :, 12:], v[:1, :, 12:]))
    torch.testing.assert_close(found[1:], dense(own[1:, :, -10:], k[1:], v[1:]))
    assert not found[0, :, :2].any()


def test_bytes_are_counted_once() -> None:
    session, alone = made("snapkv(0.5)"), made("snapkv(0.5)", shape=Geometry((OWNER,), 512))
    prompt(session)
    q, _, k, v = drawn(60)
    alone.begin(60, "prefill")
    alone.step(0, q, k, v, SCORING)
    assert session.cache_bytes() == alone.cache_bytes() == session.predicted_bytes()
    assert SHAPE.dense_bytes(60, torch.float32) == 60 * 2 * 32 * 4


def test_a_step_that_is_given_up_between_them_leaves_nothing() -> None:
    session = made("streaming(0.3)")
    q, _, k, v = drawn(60)
    session.begin(60, "prefill")
    session.step(0, q, k, v, SCORING)
    assert int(session.lengths(0).max()) == 60, "the eviction waits"
    session.abort()
    assert int(session.lengths(0).max()) == 0
    assert torch.equal(prompt(session), prompt(made("streaming(0.3)")))


def test_an_absorbed_prompt_is_one_that_was_read() -> None:
    session, read = made("snapkv(0.3)"), made("snapkv(0.3)")
    prompt(read)
    q, _, k, v = drawn(60)
    session.begin(60, "prefill")
    session.absorb(0, q, k, v, SCORING)
    assert session.opened is None
    assert torch.equal(session.positions(0, 0, 1), read.positions(0, 0, 1))


def test_what_readers_cannot_follow_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"'double_sparsity' notes what layer 0 chose, but layers \[1\]"):
        made("double_sparsity(0.5)")
    session = made("")
    prompt(session)
    with pytest.raises(SessionError, match="1 of the model's 2 layers read what another one stores"):
        begin_drafted(session, 2)


def test_a_file_says_who_reads_whom() -> None:
    assert GeometryFacts.model_validate_json(json.dumps(SHAPE.describe())).geometry() == SHAPE
    with pytest.raises(ShapeError, match="layer 1 reads layer 2"):
        Geometry((OWNER, LayerGeometry(4, 0, 0, 0, kind="reader", reads=2), OWNER), 512)
    with pytest.raises(ShapeError, match="kind 'attention' that reads layer 0"):
        LayerGeometry(4, 2, 16, 16, reads=0)
