"""Rows of a session are selected: each goes on as a session of its own would, whatever form its tokens lie in."""

from __future__ import annotations

import pytest
import torch

from headwise.engine.rows import select_rows
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Scoring
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.shapes import Mark

GEOMETRY = Geometry.uniform(4, 2, 16, 16, (None, 24, None), 4096)
RECIPES = (
    "",
    "int8",
    "snapkv(0.5) | ada | int8",
    "h2o(0.5)",
    "razor(0.5)",
    "streaming(0.5) | quest(16)",
    "kivi",
    "low_rank(0.5)",
    "xkv(0.25)",
    "staircase",
    "tidal(16)",
    "recycled(16)",
    "critic(0.5)",
    "cam(0.5)",
)


def drawn(rows: int, tokens: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """q, k and v of every layer for one step."""
    generator = torch.Generator().manual_seed(seed)

    def some(heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, tokens, 16, generator=generator)

    return [(some(4), some(2), some(2)) for _ in range(len(GEOMETRY.layers))]


def step(session: Session, calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    tokens = calls[0][0].shape[2]
    session.begin(tokens, "prefill" if max(session.seen) == 0 else "decode")
    return [session.step(layer, *call, Scoring(0.25)) for layer, call in enumerate(calls)]


def of_rows(calls, rows: list[int]):
    return [tuple(x[rows] for x in call) for call in calls]


@pytest.mark.parametrize("recipe", RECIPES)
def test_selected_rows_go_on_as_rows_of_a_batch_that_had_them(recipe: str) -> None:
    """A batch of 3 rows, of which row 2 and twice row 0 go on, gives what a batch of those gives from the start."""
    plan, chosen = Plan.uniform(GEOMETRY, recipe, "x"), [2, 0, 0]
    selected, whole = Session(plan, rows=3), Session(plan, rows=3)
    prompt = drawn(3, 70, 0)
    step(selected, prompt)
    step(whole, of_rows(prompt, chosen))
    select_rows(selected, chosen)
    for turn in range(70):  # past an eviction while decoding
        new = drawn(3, 1, turn + 1)
        for found, expected in zip(step(selected, new), step(whole, new), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for layer in range(len(GEOMETRY.layers)):
        assert torch.equal(selected.lengths(layer), whole.lengths(layer))
    assert selected.predicted_bytes() == whole.predicted_bytes()


def test_rows_become_fewer_and_more_and_copies_do_not_meet() -> None:
    session = Session(Plan.uniform(GEOMETRY, "int8", "x"), rows=2)
    step(session, drawn(2, 40, 0))
    select_rows(session, [1])
    assert session.rows == 1 and session.lengths(0).shape == (1, 2)
    select_rows(session, [0, 0, 0])
    outs = step(session, drawn(3, 5, 1))[0]
    assert not torch.equal(outs[0], outs[1])
    session.truncate(40)
    single = drawn(1, 1, 9)
    found = step(session, [tuple(x.expand(3, -1, -1, -1) for x in call) for call in single])
    for out in found:
        torch.testing.assert_close(out[0], out[1])
        torch.testing.assert_close(out[0], out[2])


def test_what_was_evicted_is_told_of_the_rows_there_are() -> None:
    session = Session(Plan.uniform(GEOMETRY, "streaming(8, sinks=2, recent=2)", "x"), rows=2)
    step(session, drawn(2, 40, 0))
    lost = [session.ledger.lost_mass(GEOMETRY.kv_heads, row) for row in range(2)]
    assert lost[0] != lost[1]
    select_rows(session, [1, 0, 1])
    told = [session.ledger.lost_mass(GEOMETRY.kv_heads, row) for row in range(3)]
    assert told == [lost[1], lost[0], lost[1]]


def test_marks_follow_their_rows() -> None:
    session = Session(Plan.uniform(GEOMETRY, "", "x"), rows=2, marks=[Mark("example", 3, 9, 1), Mark("image", 1, 2, 0)])
    select_rows(session, [1, 1])
    assert session.marks == (Mark("example", 3, 9, 0), Mark("example", 3, 9, 1))


def test_what_cannot_be_selected_is_refused(tmp_path) -> None:
    from headwise.cache.tiers import given_tier

    session = Session(Plan.uniform(GEOMETRY, "", "x"), rows=2)
    for rows in ([], [2], [-1]):
        with pytest.raises(SessionError, match="rows are 0 to 1"):
            select_rows(session, rows)
    session.begin(4, "prefill")
    with pytest.raises(SessionError, match="abort"):
        select_rows(session, [0])
    tiered = Session(Plan.uniform(GEOMETRY, "", "x"), rows=2, tier=given_tier("1MiB", tmp_path))
    with pytest.raises(SessionError, match="resident="):
        select_rows(tiered, [0])
