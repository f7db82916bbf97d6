"""Law: a step of drafted tokens of which some are accepted leaves what so many single steps leave, of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headwise.engine.drafted import accept, begin_drafted, room
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.geometry import Geometry
from headwise.plan import Plan
from tests.contract.drive import Text, columns, decode, everything, geometry, layer_by_layer, prefill, small
from tests.fuzz.state import differences, state

PROMPT, TOKENS = 96, 72  # past the eviction after 64 decoded tokens
CUTS = (1, 3, 5, 2, 4)  # of the drafts' tokens, how many are accepted, in turn
DRAFT = 6
BLIND = ("bytes", "clock")  # room to grow and the number of steps may differ


def opened(shape: Geometry, name: str, text: Text, padding: int = 0) -> Session:
    """A session after the prompt; its last row begins with so much padding."""
    session = Session(Plan.uniform(shape, small(name)), rows=text.q.shape[1])
    if not padding:
        prefill(session, text, [PROMPT])
        return session
    live = torch.ones(session.rows, PROMPT, dtype=torch.bool)
    live[-1, :padding] = False
    session.begin(PROMPT, "prefill", live=live, ids=columns(session.rows, 0, PROMPT))
    list(layer_by_layer(session, text, 0, PROMPT))
    session.commit()
    return session


def drafted(session: Session, text: Text, wrong: Text, start: int, tokens: int, stay: int) -> torch.Tensor:
    """A drafted step of which the first `stay` tokens are those of the text and are accepted: [L, b, H, stay, e]."""
    mixed = Text(
        *(
            torch.cat((own[..., : start + stay, :], other[..., start + stay :, :]), dim=-2)
            for own, other in ((text.q, wrong.q), (text.k, wrong.k), (text.v, wrong.v))
        )
    )
    begin_drafted(session, tokens, columns(session.rows, start, tokens))
    outs = torch.stack(list(layer_by_layer(session, mixed, start, tokens)))
    accept(session, range(stay))
    return outs[:, :, :, :stay]


def by_drafts(session: Session, text: Text, wrong: Text) -> torch.Tensor:
    """TOKENS decoded tokens, by drafted steps wherever there is room: [L, b, H, TOKENS, e]."""
    outs, done = [], 0
    while done < TOKENS:
        tokens = min(DRAFT, room(session))
        if tokens > 1:
            stay = min(CUTS[len(outs) % len(CUTS)], tokens, TOKENS - done)
            outs.append(drafted(session, text, wrong, PROMPT + done, tokens, stay))
        else:
            stay = 1
            outs.append(decode(session, text, PROMPT + done, 1))
        done += stay
    return torch.cat(outs, dim=3)


def held(session: Session) -> dict[str, Any]:
    """All that is held but the ledger, which counts passes, and notes that newer ones have replaced."""
    found = {name: one for name, one in state(session).items() if not name.startswith(("ledger.", "memory."))}
    for row in range(session.rows):
        memory = session.memories.shown(row, session.seen[row], 0, ())
        found |= {f"memory.{row}.{place}": tensor for place, tensor in memory.notes.items()}
    return found


def waits(name: str) -> bool:
    """Whether the selection of a recipe depends on later layers' notes."""
    select = small(name).select
    return select is not None and select.waits_for_layers


@pytest.mark.parametrize("name", [name for name in everything() if not waits(name)])
def test_accepted_tokens_leave_what_single_steps_leave(name: str) -> None:
    shape = geometry(windows=(None, 24, None))
    text, wrong = (Text.random(shape, PROMPT + TOKENS + 16, rows=2, seed=seed) for seed in (3, 4))
    single, several = (opened(shape, name, text) for _ in range(2))
    want, got = decode(single, text, PROMPT, TOKENS), by_drafts(several, text, wrong)
    assert several.ledger.drafts["accepted"] > 20 and several.ledger.drafts["proposed"] > 40
    assert torch.allclose(got, want, atol=1e-5), float((got - want).abs().max())
    assert_alike(several, single)


@pytest.mark.parametrize("name", ["h2o", "quest", "snapkv", "tidal", "kivi"])
def test_so_they_do_in_padded_batches(name: str) -> None:
    shape = geometry()
    text, wrong = (Text.random(shape, PROMPT + TOKENS + 16, rows=2, seed=seed) for seed in (3, 4))
    single, several = (opened(shape, name, text, padding=20) for _ in range(2))
    want, got = decode(single, text, PROMPT, TOKENS), by_drafts(several, text, wrong)
    assert several.seen == [PROMPT + TOKENS, PROMPT + TOKENS - 20]
    assert torch.allclose(got, want, atol=1e-5)
    assert_alike(several, single)


def assert_alike(one: Session, other: Session) -> None:
    """Both hold the same; numbers that were summed up in another order may differ by rounding."""
    have, want = held(one), held(other)
    for name in differences(have, want, BLIND):
        place = name.split(":")[0]
        first, second = have.get(place), want.get(place)
        close = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and first.shape == second.shape
        assert close and first.is_floating_point() and torch.allclose(first, second, atol=1e-4), name


def test_what_is_not_accepted_can_be_taken_back_whole() -> None:
    shape = geometry()
    text = Text.random(shape, PROMPT + 20)
    session = opened(shape, "h2o(0.3, sinks=2, recent=6) | quest(16, sinks=0, recent=0, skip_layers=0)", text)
    before = state(session)
    begin_drafted(session, 5)
    list(layer_by_layer(session, text, PROMPT, 5))
    session.abort()
    assert not differences(state(session), before)


def test_misuse_is_refused_by_name() -> None:
    shape = geometry()
    text = Text.random(shape, PROMPT + 80)
    session = opened(shape, "h2o", text)
    with pytest.raises(SessionError, match="nothing was drafted"):
        accept(session, [0])
    with pytest.raises(SessionError, match="17 drafted tokens are more than the 16"):
        begin_drafted(session, 17)
    begin_drafted(session, 4)
    with pytest.raises(SessionError, match="middle of their step"):
        accept(session, [0])
    list(layer_by_layer(session, text, PROMPT, 4))
    for verb in (session.fork, lambda: session.truncate(3), lambda: session.begin(1, "decode")):
        with pytest.raises(SessionError, match="before drafted tokens are accepted"):
            verb()
    with pytest.raises(SessionError, match="no path through 4 drafted tokens"):
        accept(session, range(5))
    accept(session, range(4))
    decode(session, text, PROMPT + 4, 58)
    assert room(session) == 1
    decode(session, text, PROMPT + 62, 1)
    assert room(session) == 0, "the token that evicts is read by itself"
    decode(session, text, PROMPT + 63, 1)
    assert room(session) == 16


def test_a_selection_that_waits_for_later_layers_is_refused_by_name() -> None:
    names = [name for name in everything() if waits(name)]
    assert names == ["act_qkv"]
    session = opened(geometry(), names[0], Text.random(geometry(), PROMPT))
    with pytest.raises(SessionError, match="'act_qkv' chooses by what later layers"):
        begin_drafted(session, 2)
