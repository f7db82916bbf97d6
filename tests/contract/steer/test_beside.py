"""Steering beside what else a session does: latent layers, tiers, drafts, going back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.cache.tiers import Tier
from headwise.engine.drafted import accept, begin_drafted, chains_only
from headwise.engine.session import Session
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from headwise.shapes import Mark
from tests.contract.drive import decode, feed, layer_by_layer, prefill, run
from tests.contract.steer.cases import PROMPT, SHAPE, STEPS, marks_of, method, steered, texts
from tests.contract.test_latent import APART, LATENT, latents

every = pytest.mark.parametrize("name", sorted(methods("steer")))


@pytest.mark.parametrize("beside", ["", "h2o(0.5, sinks=2, recent=6) | int8"])
@every
def test_latent_layers_are_steered_as_heads_whose_values_lie_apart(name: str, beside: str) -> None:
    part, text = method(name), latents(PROMPT + STEPS)
    recipe = Recipe(**{own.part: own for own in (*Recipe.parse(beside).parts, part)})
    marks = [Mark(kind, 5 + 3 * place, 12 + 3 * place) for place, kind in enumerate(part.kinds)]
    _, apart = run(APART, recipe, text, [PROMPT], STEPS, marks=marks)
    _, out = run(LATENT, recipe, text, [PROMPT], STEPS, marks=marks)
    _, dense = run(APART, Recipe.parse(beside), text, [PROMPT], STEPS)
    tolerance = 1e-4 if not beside else 0.05  # a latent is rounded once, keys and values each by themselves
    torch.testing.assert_close(out, apart, atol=tolerance, rtol=tolerance)
    assert (out - dense).abs().max() > 0.05


@every
def test_a_tier_changes_nothing(name: str, tmp_path: Path) -> None:
    text, part = texts(), method(name)
    _, near = steered(part, text)
    _, far = steered(part, text, tier=Tier(16 * 1024, tmp_path))
    torch.testing.assert_close(near, far, atol=1e-6, rtol=1e-5)


@every
def test_several_new_tokens_at_once_equal_one_at_a_time(name: str) -> None:
    text, part = texts(), method(name)
    _, out = steered(part, text)
    again = Session(Plan.uniform(SHAPE, Recipe(steer=part)), marks=marks_of(part))
    prefill(again, text, [PROMPT])
    together = feed(again, text, PROMPT, STEPS, "decode")
    torch.testing.assert_close(together, out[..., PROMPT:, :], atol=1e-6, rtol=1e-5)


@every
def test_drafts_are_chains_and_read_as_single_steps_would(name: str) -> None:
    text, part = texts(), method(name)
    _, out = steered(part, text)
    session = Session(Plan.uniform(SHAPE, Recipe(steer=part)), marks=marks_of(part))
    prefill(session, text, [PROMPT])
    assert chains_only(session) == f"'{name}' steers what every token reads"
    begin_drafted(session, STEPS)
    drafted = torch.stack(list(layer_by_layer(session, text, PROMPT, STEPS)))
    torch.testing.assert_close(drafted, out[..., PROMPT:, :], atol=1e-6, rtol=1e-5)
    accept(session, [0, 1])
    rest = decode(session, text, PROMPT + 2, STEPS - 2)
    torch.testing.assert_close(rest, out[..., PROMPT + 2 :, :], atol=1e-6, rtol=1e-5)


@every
def test_going_back_and_on_gives_the_same(name: str) -> None:
    text, part = texts(), method(name)
    session, out = steered(part, text)
    session.truncate(PROMPT + 1)
    again = decode(session, text, PROMPT + 1, STEPS - 1)
    torch.testing.assert_close(again, out[..., PROMPT + 1 :, :], atol=1e-6, rtol=1e-5)
