"""What a method is shown is true: every field of its views, in prompts, decoding and turns, for its own heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from headwise.attention.view import GRANTABLE, View
from headwise.engine.session import Session
from headwise.forms import Causal, Scoring, Where
from headwise.methods.evict import Evict
from headwise.methods.prefill import Prefill
from headwise.methods.select import Select
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import Card
from headwise.shapes import Mark, Rope
from tests.contract.drive import SCALE, Text, decode, feed, geometry, prefill
from tests.methods.views import rope

NOTED: list[tuple[str, View]] = []
CARD = Card("Shown everything", "none")


@dataclass(frozen=True)
class ShownToEvict(Evict):
    """Asks for everything, notes it, and evicts at random."""

    name = "shown_to_evict"
    card = CARD
    needs = frozenset(GRANTABLE) - {"summaries"}
    notes = 1

    def note(self, view: View) -> torch.Tensor:
        return view.notes + view.positions[..., None]

    @property
    def last_queries(self) -> int:
        return 12

    def score(self, view: View) -> torch.Tensor:
        NOTED.append(("evict", view))
        return (view.positions * 7919 % 101).float()


@dataclass(frozen=True)
class ShownToSelect(Select):
    """Asks for everything but mass, notes it, and reads everything."""

    name = "shown_to_select"
    card = CARD
    needs = frozenset(GRANTABLE) - {"mass", "notes"}
    summary_size = 8

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        return blocks.amax(2)

    def select(self, view: View) -> Where:
        NOTED.append(("select", view))
        return Causal()


@dataclass(frozen=True)
class ShownToPrefill(Prefill):
    """The same for a prompt."""

    name = "shown_to_prefill"
    card = CARD
    needs = frozenset(GRANTABLE) - {"mass", "notes", "summaries"}

    def where(self, view: View) -> Where:
        NOTED.append(("prefill", view))
        return Causal()


@contextmanager
def unnoted() -> Iterator[None]:
    before = list(NOTED)
    yield
    NOTED[:] = before


def check(part: str, view: View, text: Text, turn: Rope, seed: int) -> None:
    """Everything a view says, against the text it is of."""
    heads = list(view.heads)
    q, k, v = text.q[view.layer, 0], text.k[view.layer, 0], text.v[view.layer, 0]
    assert (view.scoring, view.seed) == (Scoring(SCALE), seed)
    assert view.rope is turn
    assert view.marks == (Mark("image", 3, 9), Mark("image", 20, 30), Mark("text", 30, 200))
    assert view.positions.shape == (len(heads), view.count)
    for i, head in enumerate(heads):
        stored = view.positions[i].long()
        assert torch.equal(view.keys[i], k[head, stored])
        assert torch.equal(view.values[i], v[head, stored])
    ends = view.query_positions
    assert torch.equal(ends, torch.arange(view.seen - len(ends), view.seen))
    assert torch.equal(view.queries, q.unflatten(0, (k.shape[0], -1))[heads][:, :, ends])
    if part == "evict":
        assert torch.equal(view.notes[..., 0] % view.positions.clamp(min=1), torch.zeros_like(view.notes[..., 0]))
        assert (view.notes[..., 0] >= view.positions).all()
    if part == "select":
        whole = view.count // 8
        assert torch.equal(view.summaries, view.keys[:, : 8 * whole].unflatten(1, (whole, 8)).amax(2))


def run_all(recipes: tuple[Recipe, ...], text: Text, turn: Rope) -> Session:
    """A prompt in chunks, 70 new tokens (an eviction among them), 3 that are taken back, a second turn and 5 more."""
    shape = geometry(8, 4)
    NOTED.clear()
    marks = [Mark("image", 20, 30), Mark("image", 3, 9), Mark("text", 30, 200)]
    session = Session(Plan(shape, (recipes, recipes)), seed=5, ropes=[turn, turn], marks=marks)
    prefill(session, text, [50, 40])
    decode(session, text, 90, 70)
    with unnoted():
        feed(session, Text.random(shape, 163, seed=1), 160, 3, "decode")
    session.truncate(160)
    feed(session, text, 160, 5, "prefill")
    decode(session, text, 165, 20)
    return session


def test_views_tell_the_truth() -> None:
    everything = Recipe(ShownToPrefill(), ShownToEvict(0.5, sinks=1, recent=3), None, None, ShownToSelect(0.5))
    text, turn = Text.random(geometry(8, 4), 185), rope(16)
    run_all((Recipe(), everything, Recipe(), everything), text, turn)
    for part, view in NOTED:
        assert view.heads == (1, 3)
        check(part, view, text, turn, 5)
    shown = {(part, view.phase, view.seen) for part, view in NOTED}
    assert {("prefill", "prefill", seen) for seen in (50, 90, 165)} <= shown
    assert {("evict", "prefill", seen) for seen in (50, 90, 165)} <= shown
    assert {("select", "decode", seen) for seen in (*range(91, 161), *range(166, 186))} <= shown
    late = [view for part, view in NOTED if (part, view.phase) == ("evict", "decode")]
    assert late
    assert all(view.queries.shape[2] >= 12 for view in late)


def test_mass_is_what_every_query_gave_while_the_token_was_stored() -> None:
    text, turn = Text.random(geometry(8, 4), 185), rope(16)
    recipe = Recipe(evict=ShownToEvict(0.5, sinks=1, recent=3))
    run_all((recipe,) * 4, text, turn)
    received, counted = torch.zeros(2, 4, 185), [0, 0]
    for _, view in NOTED:
        _add_mass(received, view, text, counted[view.layer])
        counted[view.layer] = view.seen
        for i in range(4):
            stored = view.positions[i].long()
            torch.testing.assert_close(view.mass[i], received[view.layer, i, stored], atol=1e-4, rtol=1e-4)


def _add_mass(received: torch.Tensor, view: View, text: Text, start: int) -> None:
    """Add what queries start..seen-1 gave to each stored token: sum over the group of causal softmax rows."""
    for i in range(4):
        stored = view.positions[i].long()
        queries = text.q[view.layer, 0, 2 * i : 2 * i + 2, start : view.seen]
        scores = queries @ text.k[view.layer, 0, i, stored].T * SCALE
        later = stored[None] > torch.arange(start, view.seen)[:, None]
        received[view.layer, i, stored] += scores.masked_fill(later, -torch.inf).softmax(-1).sum((0, 1))
