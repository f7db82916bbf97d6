"""Memories: shown to the heads that wrote them, cut back with the session, and exact within their reach."""

from __future__ import annotations

import pytest
import torch

from headwise.engine.memory import REACH, Memories
from headwise.engine.session import Session
from headwise.errors import PlanError
from headwise.geometry import Geometry, LayerGeometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import Text, decode, geometry, prefill
from tests.methods.views import make_view

REMEMBERING = (
    "recycled(20, sinks=2, recent=4, every=5)",
    "token_select(20, sinks=2, recent=4, alike=-0.5)",
    "tidal(20, sinks=2, recent=4, skip_layers=0)",
    "loki(20, sinks=2, recent=4)",
)


def noted(*values: float) -> dict[str, list[torch.Tensor]]:
    return {"it": [torch.tensor(value) for value in values]}


def test_a_note_is_shown_to_its_row_layer_and_heads_only() -> None:
    notes, view = Memories(), make_view(20, t=1)
    notes.write(0, view, noted(1.0, 2.0))
    recalled = notes.shown(0, 40, 3, (1, 0)).recall("it")
    assert recalled is not None and [float(one) for one in recalled] == [2.0, 1.0]
    assert notes.shown(0, 40, 5, (0,)).recall("it", layer=3) is not None
    for row, layer, heads, name in [(1, 3, (0,), "it"), (0, 4, (0,), "it"), (0, 3, (0, 2), "it"), (0, 3, (0,), "that")]:
        assert notes.shown(row, 40, layer, heads).recall(name) is None


def test_going_back_shows_the_note_that_was_the_newest_then() -> None:
    notes = Memories()
    for seen in (20, 23, 26):
        notes.write(0, make_view(seen, t=1), noted(seen, seen))
    for limit, newest in ((26, 26.0), (25, 23.0), (22, 20.0)):
        notes.truncate([limit])
        recalled = notes.shown(0, 40, 3, (0,)).recall("it")
        assert recalled is not None and float(recalled[0]) == newest
    notes.truncate([19])
    assert notes.shown(0, 40, 3, (0,)).recall("it") is None
    assert notes.nbytes == 0


def test_what_was_noted_later_is_not_shown_to_an_earlier_token() -> None:
    notes = Memories()
    for seen in (20, 23):
        notes.write(0, make_view(seen, t=1), noted(seen, seen))
    for seen, newest in ((23, 23.0), (22, 20.0), (20, 20.0)):
        recalled = notes.shown(0, seen, 3, (0,)).recall("it")
        assert recalled is not None and float(recalled[0]) == newest
    assert notes.shown(0, 19, 3, (0,)).recall("it") is None


def test_notes_that_no_draft_can_need_are_dropped() -> None:
    notes = Memories()
    for seen in range(20, 20 + 4 * REACH):
        notes.write(0, make_view(seen, t=1), noted(1.0, 1.0))
    assert len(notes.state()) == 2 * (REACH + 1)


@pytest.mark.parametrize("recipe", REMEMBERING)
@pytest.mark.parametrize("back", [1, 4, REACH - 1])
def test_truncate_between_choices_is_as_if_later_tokens_had_never_come(recipe: str, back: int) -> None:
    text, other = Text.random(geometry(), 130), Text.random(geometry(), 130, seed=1)
    session = Session(Plan.uniform(geometry(), Recipe.parse(recipe)))
    prefill(session, text, [60])
    decode(session, text, 60, 7)
    untouched = session.fork()
    decode(session, other, 67, back)
    session.truncate(67)
    assert torch.equal(decode(session, text, 67, 8), decode(untouched, text, 67, 8))


@pytest.mark.parametrize("recipe", REMEMBERING)
def test_noted_tokens_are_found_again_after_an_eviction(recipe: str) -> None:
    """Storage indices change when tokens are evicted; positions do not."""
    text = Text.random(geometry(), 200)
    session = Session(Plan.uniform(geometry(), Recipe.parse("streaming(40, sinks=2, recent=6) | " + recipe)))
    prefill(session, text, [60])
    assert decode(session, text, 60, 140).isfinite().all()


def test_a_recycled_choice_is_read_until_the_next_full_step() -> None:
    recipe = Recipe.parse("recycled(20, sinks=0, recent=1, every=4)")
    text = Text.random(geometry(), 90)
    session = Session(Plan.uniform(geometry(), recipe))
    prefill(session, text, [60])
    dense = Session(Plan.uniform(geometry(), Recipe()))
    prefill(dense, text, [60])
    same = [
        torch.allclose(decode(session, text, 60 + i, 1), decode(dense, text, 60 + i, 1), atol=1e-5) for i in range(9)
    ]
    assert same == [True, False, False, False, True, False, False, False, True]


def test_calibration_is_shown_for_the_views_heads_and_checked() -> None:
    shape = geometry()
    basis = torch.eye(shape.size("d")).expand(2, 2, -1, -1).clone()
    plan = Plan.uniform(shape, "loki(0.3)")
    with_basis = Plan(shape, plan.recipes, calibration={"loki.basis": basis, "else": torch.zeros(3)})
    assert torch.equal(with_basis.calibrated("loki", 1, (1,))["basis"], basis[1, [1]])
    assert with_basis.calibrated("quest", 1, (1,)) == {}
    assert with_basis.digest != plan.digest
    session = Session(with_basis)
    prefill(session, Text.random(shape, 60), [60])
    decode(session, Text.random(shape, 61), 60, 1)
    assert session.memories.nbytes == 0, "a calibrated method notes no basis of its own"
    with pytest.raises(PlanError, match=r"loki.basis"):
        Plan(shape, plan.recipes, calibration={"loki.basis": basis[:1]})


@pytest.mark.parametrize(
    ("shape", "recipe", "why"),
    [
        (Geometry((LayerGeometry(4, 1, 32, 16), LayerGeometry(4, 2, 32, 16)), 4096), "", "layer 0 has 1 heads"),
        (geometry(windows=(8, None)), "", "layer 0 attends to a window of 8 tokens and chooses nothing"),
        (geometry(), "quest(20)", "layer 0 follows another selection there"),
    ],
)
def test_a_head_that_reads_what_no_layer_chose_for_it_is_refused(shape: Geometry, recipe: str, why: str) -> None:
    tidal = Recipe.parse("tidal(20, skip_layers=0)")
    first = Recipe.parse(recipe) if recipe else tidal
    rows = tuple((first if layer == 0 else tidal,) * heads for layer, heads in enumerate(shape.kv_heads))
    with pytest.raises(PlanError, match=why):
        Plan(shape, rows)
