"""A step whose selection finds nothing gets nothing from what is stored, wherever and however that lies."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import attend_pages
from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.cache.tiers import Tier
from headwise.cache.tiers.store import TieredStore
from headwise.engine.read import _gathered
from headwise.forms import Scoring, Tokens
from headwise.recipe import Recipe
from tests.contract.drive import Text, geometry, run

NOTHING = "extended_mind(1, sinks=0, recent=0, floor=1.0)"
BESIDE = ["", "int8 | ", "int4(32) | ", "kivi(window=8, group=16) | ", "h2o(60, recent=8) | int8 | "]
TEXT = Text.random(geometry(), 180)


@pytest.mark.parametrize("tier", [None, Tier(32 * 1024)], ids=["memory", "tier"])
@pytest.mark.parametrize("beside", BESIDE)
def test_a_step_that_selects_nothing_puts_out_nothing(beside: str, tier: Tier | None) -> None:
    if tier is not None and "kivi" in beside:
        pytest.skip("group codecs do not lie in a tier")
    session, out = run(geometry(), Recipe.parse(beside + NOTHING), TEXT, [170], 10, tier=tier)
    assert out[..., :170, :].isfinite().all()
    assert (out[..., 170:, :] == 0).all()
    assert session.ledger.stepped_aside["extended_mind"] == 0


def test_with_positions_of_its_own_a_step_still_reads_itself() -> None:
    recipe = Recipe.parse(NOTHING.replace("floor=1.0", "floor=1.0, positions='fixed'"))
    _, out = run(geometry(), recipe, TEXT, [170], 10)
    values = TEXT.v[..., 170:, :].repeat_interleave(geometry().size("g"), 2)
    torch.testing.assert_close(out[..., 170:, :], values)  # alone among its keys, its own value is the mean


def test_the_mean_of_what_was_dropped_is_added_to_nothing() -> None:
    recipe = Recipe.parse(f"razor(40, recent=8) | {NOTHING}")
    session, out = run(geometry(), recipe, TEXT, [170], 1)
    mean = torch.stack([layer[0].evicted_mean.values for layer in session.layers])
    torch.testing.assert_close(out[:, 0, ::2, 170], mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_a_lane_of_which_nothing_is_read_keeps_its_place_among_those_read_from_a_tier(empty: tuple[int, ...]) -> None:
    shape = Shape(3, 32, 32, torch.float32, ("plain", "plain"))
    near, far = PagedStore(shape), TieredStore(shape, Tier(4 * 2 * 16 * 32 * 4 + 1))
    drawn = torch.Generator().manual_seed(0)
    k, v, q = (torch.randn(3, 200, 32, generator=drawn) for _ in range(3))
    for store in (near, far):
        store.append(k, v, torch.arange(200).repeat(3, 1))
    lists = [torch.zeros(0, dtype=torch.int64) if lane in empty else torch.arange(lane, 200, 3) for lane in range(3)]
    for _ in range(2):  # to and fro
        read = [
            _gathered([(lanes, attend_pages(q[lanes, None, :1], paged, where, Scoring(0.2)))
                       for lanes, paged, where in store.pieces(0, 3, Tokens(lists), 1)])
            for store in (near, far)
        ]  # fmt: skip
        assert read[1].out.shape == (3, 1, 1, 32)
        torch.testing.assert_close(read[0].out, read[1].out, atol=1e-5, rtol=1e-5)
        assert [lane for lane in range(3) if read[1].lse[lane] == -torch.inf] == list(empty)
