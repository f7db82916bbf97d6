"""What an eviction leaves behind: one pair that reads as all the tokens it stands for."""

from __future__ import annotations

import pytest
import torch

from headwise.engine.session import Session
from headwise.forms import Scoring
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract import dense
from tests.contract.drive import Text, decode, feed, geometry, prefill

RAZOR = Recipe.parse("razor(30, sinks=4, recent=10)")


def text_of_equal_keys(shape: Geometry) -> Text:
    """Keys between sinks and the recent tokens are all the same."""
    text = Text.random(shape, 120)
    text.k[..., 4:80, :] = text.k[..., 4:5, :]
    return text


@pytest.mark.parametrize("chunks", [(100,), (40, 30, 30)])
def test_dropping_tokens_of_equal_keys_changes_nothing_259(chunks: tuple[int, ...]) -> None:
    """Row 259: with identical dropped keys the compensated output is dense attention's, whatever their values are."""
    text = text_of_equal_keys(geometry())
    session = Session(Plan.uniform(geometry(), RAZOR))
    prefill(session, text, chunks)
    assert int(session.lengths(0).max()) == 30
    out = torch.cat((decode(session, text, 100, 3), feed(session, text, 103, 17, "prefill")), dim=3)
    torch.testing.assert_close(out.double(), dense.all_causal(text, 100), atol=1e-5, rtol=1e-5)


def test_a_protected_head_reads_everything() -> None:
    text = Text.random(geometry(), 110)
    scores = torch.tensor([[0.0, 1.0], [0.0, 0.0]])[..., None].expand(2, 2, 2)
    plan = Plan(geometry(), ((Recipe.parse("razor(36, echo=0, induction=0.25)"),) * 2,) * 2)
    plan.calibration["razor.induction"] = scores
    session = Session(plan)
    prefill(session, text, [100])
    assert session.lengths(0).tolist() == [[36, 100]] and session.lengths(1).tolist() == [[36, 36]]
    out, truth = decode(session, text, 100, 5), dense.all_causal(text, 100)[..., :5, :]
    torch.testing.assert_close(out[0, :, 2:].double(), truth[0, :, 2:], atol=1e-5, rtol=1e-5)
    assert (out[0, :, :2] - truth[0, :, :2]).abs().max() > 1e-2


def test_going_back_before_a_dropped_token_forgets_the_mean() -> None:
    """A mean cannot be taken apart: rather than read tokens from the future, nothing of it is read."""
    text = Text.random(geometry(), 120)
    session = Session(Plan.uniform(geometry(), RAZOR))
    prefill(session, text, [100])
    group = session.layers[0][0]
    assert group.evicted_mean is not None and group.evicted_mean.counts.tolist() == [70, 70]
    assert group.evicted_mean.last.tolist() == [73, 73]
    session.truncate(74)
    assert group.evicted_mean.counts.tolist() == [70, 70]
    session.truncate(73)
    assert group.evicted_mean.counts.tolist() == [0, 0]
    stored = [[[[0, 1, 2, 3, 100]] * 2]] * 2
    out = feed(session, text.since(27), 73, 1, "decode")
    truth = dense.attention(text, 100, dense.showing(stored, 120))[..., :1, :]
    torch.testing.assert_close(out.double(), truth, atol=1e-5, rtol=1e-5)


def test_the_mean_is_scored_under_a_soft_cap() -> None:
    shape = Geometry.uniform(2, 2, 32, 16, (None,), 4096)
    text = text_of_equal_keys(shape)
    outs = []
    for recipe in (RAZOR, Recipe()):
        session = Session(Plan.uniform(shape, recipe))
        for start, stop in ((0, 100), (100, 101)):
            session.begin(stop - start, "decode" if start else "prefill")
            q, k, v = (x[0, :, :, start:stop] for x in (text.q, text.k, text.v))
            out = session.step(0, q, k, v, Scoring(1.0, 3.0))
        outs.append(out)
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
