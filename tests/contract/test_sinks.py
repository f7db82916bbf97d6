"""Layers with sink logits: these take their share once, whatever the recipe; where they take none, nothing is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Scoring, Sinks
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract import dense, drive
from tests.contract.drive import SCALE, Text, decode, everything, full, geometry, kept, names, run, small

PROMPT, STEPS = 100, 6


def sunk(shape: Geometry) -> Geometry:
    return replace(shape, layers=tuple(replace(layer, sinks=True) for layer in shape.layers))


SHAPE = sunk(geometry())
LOGITS = torch.stack([drive.scoring(SHAPE, layer).sinks.logits.flatten() for layer in range(2)])


def close(out: torch.Tensor, truth: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(out.double(), truth, atol=tolerance, rtol=tolerance)


def everywhere(tokens: int) -> torch.Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool)


@pytest.mark.parametrize("chunks", [(100,), (30, 41, 29)])
@pytest.mark.parametrize("name", ["dense", *names("prefill", "evict", "budget", "select")])
def test_full_budget_equals_dense(name: str, chunks: tuple[int, ...]) -> None:
    text = Text.random(SHAPE, PROMPT + STEPS)
    _, out = run(SHAPE, Recipe() if name == "dense" else full(name), text, chunks, STEPS)
    close(out, dense.attention(text, 0, everywhere(PROMPT + STEPS), sinks=LOGITS))


@pytest.mark.parametrize("windows", [(16, None, 16), (16, 16)])
def test_windows_sink_too(windows: tuple[int | None, ...]) -> None:
    shape = sunk(geometry(windows=windows))
    text = Text.random(shape, PROMPT + STEPS)
    logits = torch.stack([drive.scoring(shape, layer).sinks.logits.flatten() for layer in range(len(windows))])
    for recipe in ("dense", "snapkv(0.3, sinks=2, recent=6)"):
        _, out = run(shape, Recipe.parse(recipe), text, (60, 40), STEPS)
        near = [everywhere(PROMPT + STEPS).triu(-15 if window else -PROMPT - STEPS) for window in windows]
        truth = dense.attention(text, 0, torch.stack(near)[:, None, None], sinks=logits)
        own = [layer for layer, window in enumerate(windows) if window or recipe == "dense"]
        close(out[own], truth[own])


def test_rows_of_padding_and_drafts() -> None:
    """A left-padded batch, then three tokens in one step, as each row alone."""
    text = Text.random(SHAPE, PROMPT + 3, rows=2)
    live = torch.ones(2, PROMPT, dtype=torch.bool)
    live[1, :37] = False
    session = Session(Plan.uniform(SHAPE, ""), rows=2)
    outs = [drive.feed(session, text, 0, PROMPT, "prefill", live=live), drive.feed(session, text, PROMPT, 3, "decode")]
    out = torch.cat(outs, dim=3)
    close(out[:, :1], dense.attention(text.rows([0]), 0, everywhere(PROMPT + 3), sinks=LOGITS))
    alone = text.rows([1]).since(37)
    close(out[:, 1:, :, 37:], dense.attention(alone, 0, everywhere(PROMPT + 3 - 37), sinks=LOGITS))
    assert not out[:, 1:, :, :37].any()


@pytest.mark.parametrize("name", ["snapkv", "h2o", "expected_attention", "keydiff", "streaming", "random"])
def test_decoding_is_attention_over_what_is_kept_and_the_sinks(name: str) -> None:
    text = Text.random(SHAPE, PROMPT + STEPS)
    session = Session(Plan.uniform(SHAPE, small(name)))
    drive.prefill(session, text, [PROMPT])
    stored = [[[[*have, *range(PROMPT, PROMPT + STEPS)] for have in row] for row in layer] for layer in kept(session)]
    shown = dense.showing(stored, PROMPT + STEPS)
    close(decode(session, text, PROMPT, STEPS), dense.attention(text, PROMPT, shown, sinks=LOGITS))


@pytest.mark.parametrize("name", everything())
def test_sinks_that_get_nothing_change_nothing(name: str) -> None:
    """Every method, sparse: kept, read and written as without sinks."""
    text, recipe = Text.random(SHAPE, PROMPT + STEPS), small(name)
    with_none, expected = run(geometry(), recipe, text, (60, 40), STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drive, "scoring", lambda shape, layer: Scoring(SCALE, sinks=Sinks(torch.full((2, 2), -80.0))))
        session, out = run(SHAPE, recipe, text, (60, 40), STEPS)
    assert kept(session) == kept(with_none)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    lost, before = (torch.tensor(one.ledger.lost_mass(SHAPE.kv_heads)) for one in (session, with_none))
    torch.testing.assert_close(lost, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", everything())
def test_sinks_take_their_share_whatever_is_read(name: str) -> None:
    """Every method, sparse, over two rows: what a layer puts out is shorter, in the prompt and in each step."""
    text, recipe = Text.random(SHAPE, PROMPT + STEPS, rows=2), small(name)
    _, before = run(geometry(), recipe, text, (60, 40), STEPS)
    _, out = run(SHAPE, recipe, text, (60, 40), STEPS)
    for part in (slice(PROMPT), *range(PROMPT, PROMPT + STEPS)):
        short, long = (x[..., part, :].flatten(1).norm(dim=1) for x in (out, before))
        assert (short < 0.95 * long).all() and (short > 0.02 * long).all()


@pytest.mark.parametrize(
    "sentence", ["h2o(0.4, sinks=2, recent=6) | int8", "snapkv(0.3, window=8)", "ltri(16, sinks=2)"]
)
def test_saved_forked_and_taken_back_it_goes_on_the_same(sentence: str, tmp_path: Path) -> None:
    text = Text.random(SHAPE, PROMPT + STEPS)
    session, _ = run(SHAPE, Recipe.parse(sentence), text, (60, 40), 2)
    save_session(session, tmp_path / "a.session")
    session.plan.save(tmp_path / "a.plan")
    loaded, _ = load_session(tmp_path / "a.session", Plan.read(tmp_path / "a.plan"))
    fork = session.fork()
    expected = decode(session, text, PROMPT + 2, 3)
    for other in (loaded, fork):
        assert torch.equal(decode(other, text, PROMPT + 2, 3), expected)


def test_a_layer_read_otherwise_than_its_plan_says_is_refused() -> None:
    text = Text.random(SHAPE, 20)
    for shape, given, why in (
        (SHAPE, Scoring(SCALE), "layer 0 was given no sink logits, where the plan's geometry has"),
        (geometry(), drive.scoring(SHAPE, 0), "layer 0 was given sink logits, where the plan's geometry has none"),
    ):
        session = Session(Plan.uniform(shape, ""))
        session.begin(20, "prefill")
        with pytest.raises(SessionError, match=why):
            session.step(0, text.q[0], text.k[0], text.v[0], given)
