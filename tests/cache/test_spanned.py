"""Layers whose tokens lie together: what they take, what they keep, and that a span goes its own way in a copy."""

from __future__ import annotations

import pytest
import torch

from headwise.cost.prediction import predicted_bytes
from headwise.engine.session import Session
from headwise.errors import PlanError, SessionError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import Text, decode, feed, prefill
from tests.methods.views import rope

SHAPE = Geometry.uniform(4, 2, 32, 16, (None, None, 8, None, None, None), 4096)
TURN = rope(32)


def read(sentence: str, text: Text) -> Session:
    """A session of six layers, the third a sliding one, that has read a prompt."""
    session = Session(Plan.uniform(SHAPE, sentence), rows=text.q.shape[1], ropes=[TURN] * 6)
    prefill(session, text, [text.q.shape[3]])
    return session


def related(tokens: int, rank: int) -> Text:
    """Keys, before they are turned, and values that lie in `rank` directions over all layers and heads together."""
    text, random = Text.random(SHAPE, tokens), torch.Generator().manual_seed(1)
    for x in (text.k, text.v):
        layers, _, heads, _, width = x.shape
        mixed = torch.randn(tokens, rank, generator=random) @ torch.randn(
            rank, layers * heads * width, generator=random
        )
        x[:, 0] = mixed.view(tokens, layers, heads, width).permute(1, 2, 0, 3) / rank**0.5
    return Text(text.q, TURN.rotate(text.k, torch.arange(tokens)), text.v)


def full_layers(session: Session) -> list[int]:
    return [layer for layer in range(6) if SHAPE.windows[layer] is None]


def lost(session: Session, text: Text) -> tuple[float, float]:
    """Norms of what keys and values have lost, over all layers that attend to everything."""
    errors = torch.zeros(2)
    for layer in full_layers(session):
        held = session.stores(layer)[0].segment(0, 2)
        errors += torch.stack(
            [(held.keys - text.k[layer, 0]).square().sum(), (held.values - text.v[layer, 0]).square().sum()]
        )
    return tuple(errors.sqrt().tolist())


def test_rank_enough_for_all_gives_back_what_came() -> None:
    """Row 277: R of at least the matrix rank equals dense attention to 1e-4; one direction of 16 less does not."""
    text = related(300, 16)
    session = Session(Plan.uniform(SHAPE, "xkv(0.05, value=0.1, layers=5)"), ropes=[TURN] * 6)
    dense = Session(Plan.uniform(SHAPE, ""), ropes=[TURN] * 6)
    less = Session(Plan.uniform(SHAPE, "xkv(0.044, value=0.1, layers=5)"), ropes=[TURN] * 6)  # 14 of 320
    outs = []
    for one in (session, dense, less):
        prefill(one, text, [290])
        outs.append(decode(one, text, 290, 10))
    assert session.stores(0)[0].parts[1].lengths == [258, 258]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-4)
    assert (outs[2] - outs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5])
def test_a_span_loses_no_more_than_its_layers_alone_with_as_many_coefficients(share: float) -> None:
    """Row 277: four layers with G r directions against each with r: the same coefficients by token."""
    for text in (Text.random(SHAPE, 400), related(400, 100)):
        together, alone = (read(f"xkv({share}, value={share}, layers={layers})", text) for layers in (4, 1))
        for one, other in zip(lost(together, text), lost(alone, text), strict=True):
            assert one <= other * (1 + 1e-6)


@pytest.mark.parametrize("tokens", [20, 70, 130, 400])
def test_bytes_are_counted_once_predicted_and_never_more_than_dense(tokens: int) -> None:
    text = Text.random(SHAPE, tokens, rows=2)
    session, dense = read("xkv", text), read("", text)
    assert session.nbytes() <= dense.nbytes()
    assert session.nbytes() <= 1.05 * session.predicted_bytes()
    assert 2 * predicted_bytes(session.plan, tokens, torch.float32) == pytest.approx(
        session.predicted_bytes(), rel=0.05
    )
    shares = [group.store.parts[1] for group in session.groups if len(group.store.parts) > 1]
    assert len({id(share.factor) for share in shares}) == 2, "five layers in spans of four"
    assert [share.nbytes > 0 for share in shares] == [tokens > 70, False, False, False, tokens > 20]


def test_a_copy_goes_its_own_way_in_every_layer() -> None:
    text, other = Text.random(SHAPE, 300), Text.random(SHAPE, 300, seed=1)
    session = read("xkv(window=8)", Text(*(x[..., :200, :] for x in vars(text).values())))
    before = [session.stores(layer)[0].segment(0, 2).keys.clone() for layer in full_layers(session)]
    fork = session.fork()
    feed(fork, other, 200, 90, "prefill")
    assert fork.stores(5)[0].parts[1].lengths == [282, 282]
    for layer, keys in zip(full_layers(session), before, strict=True):
        assert torch.equal(session.stores(layer)[0].segment(0, 2).keys, keys)
    fork.truncate(200)
    for layer, keys in zip(full_layers(session), before, strict=True):
        torch.testing.assert_close(fork.stores(layer)[0].segment(0, 2).keys[:, :192], keys[:, :192])
    fork.truncate(0)
    assert fork.nbytes() == 0


def test_heads_of_other_recipes_stand_apart() -> None:
    """Only the heads under one recipe lie together, of as many layers as there are with it."""
    shape = Geometry.uniform(4, 2, 32, 16, (None,) * 3, 4096)
    own, dense = Recipe.parse("xkv(layers=3)"), Recipe()
    session = Session(Plan(shape, ((own, own), (dense, own), (own, dense))))
    prefill(session, Text.random(shape, 300), [300])
    for layer, heads in enumerate(((0, 1), (1,), (0,))):
        group = next(group for group in session.layers[layer] if group.recipe == own)
        assert group.heads == heads
        assert group.store.parts[1].lengths == [268] * len(heads)
    factor = session.layers[0][0].store.parts[1].factor
    assert (factor.shape.key_width, factor.shape.value_width) == (4 * 32, 4 * 16)


def test_evictions_are_refused() -> None:
    with pytest.raises(PlanError, match="low_rank"):
        Plan.uniform(SHAPE, "snapkv(0.5) | xkv")
    session = read("xkv", Text.random(SHAPE, 300))
    with pytest.raises(SessionError, match="evict nothing"):
        session.stores(0)[0].keep([torch.arange(100)] * 2)


def test_a_share_touches_no_other_layer() -> None:
    """What all layers of a span do together is the span's to do; one of them is refused, and nothing changes."""
    session = read("xkv(window=8)", Text.random(SHAPE, 300))
    span, before = session.spans[0], {id(store): store.segment(0, 2).keys for store in session.spans[0].stores}
    assert [len(one.stores) for one in session.spans] == [4, 1]
    assert [store for one in session.spans for store in one.stores] == [
        session.stores(layer)[0] for layer in full_layers(session)
    ]
    for store in span.stores:
        share = store.parts[1]
        with pytest.raises(SessionError, match="ask its Span"):
            store.demote([torch.ones(300, dtype=torch.int64)] * 2)
        with pytest.raises(SessionError, match="ask its Span"):
            share.append(torch.zeros(2, 1, 32), torch.zeros(2, 1, 16), torch.full((2, 1), 300))
        with pytest.raises(SessionError, match="ask its Span"):
            share.fork()
    assert all(torch.equal(store.segment(0, 2).keys, before[id(store)]) for store in span.stores)
    span.demote([torch.ones(300, dtype=torch.int64)] * 2)
    assert [[part.lengths for part in store.parts] for store in span.stores] == [[[0, 0], [300, 300]]] * 4
    assert span.fork().factor is not span.factor
