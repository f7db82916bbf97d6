"""Latent layers: every method works on the one vector a token that they hold, as on a KV head of such values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwise.cache.tiers import Tier
from headwise.cost.prediction import predicted_bytes
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import PlanError, ShapeError
from headwise.geometry import Geometry, LayerGeometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract import dense, drive
from tests.contract.drive import Text, everything, kept, run, small

PROMPT, STEPS, TURNED, RANK = 100, 6, 16, 32
LATENT = Geometry((LayerGeometry(4, 1, TURNED + RANK, RANK, kind="latent"),) * 2, 4096)
APART = replace(LATENT, layers=tuple(replace(one, kind="attention") for one in LATENT.layers))  # the same, held twice
REFUSED = {
    "think": "leaves out channels of keys",
    "xkv": "writes keys and values in rows of their own",
    "cam": "merges evicted values .* give merge=0",
}
WORKING = [name for name in everything() if name not in REFUSED]


def latents(tokens: int, rows: int = 1) -> Text:
    text = Text.random(LATENT, tokens, rows)
    return replace(text, v=text.k[..., TURNED:])


def halves(session: Session) -> None:
    """What is held of keys holds the values."""
    for store in (store for layer in range(2) for store in session.stores(layer)):
        assert not [name for part in store.parts for name in part.shape.layout if name.startswith("value")]
        for first, last in store.runs():
            held = store.segment(first, last)
            assert torch.equal(held.values, held.keys[..., TURNED:])
            assert torch.equal(store.values(first, last), held.values)


@pytest.mark.parametrize("name", [name for name in WORKING if small(name).compress is None])
def test_methods_do_as_on_a_head_whose_values_lie_apart(name: str) -> None:
    text, recipe = latents(PROMPT + STEPS, rows=2), small(name)
    apart, expected = run(APART, recipe, text, (60, 40), STEPS)
    session, out = run(LATENT, recipe, text, (60, 40), STEPS)
    assert kept(session) == kept(apart)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    halves(session)


# Whether low rank pays is weighed with a basis of values by its slow truth, and a latent has none.
CODECS = [name for name in WORKING if small(name).compress and not small(name).select and "low_rank" not in name]


@pytest.mark.parametrize("name", CODECS)
def test_codecs_read_values_from_the_keys_they_wrote(name: str) -> None:
    text, recipe = latents(PROMPT + STEPS, rows=2), small(name)
    session, _ = run(LATENT, recipe, text, [PROMPT], 0)
    halves(session)
    stored = [[[[*have, *range(PROMPT, PROMPT + STEPS)] for have in row] for row in layer] for layer in kept(session)]
    held = dense.as_held(session, text, stored)
    held = replace(held, v=held.k[..., TURNED:])
    out = drive.decode(session, text, PROMPT, STEPS)
    torch.testing.assert_close(out.double(), dense.over_kept(held, recipe, stored, PROMPT), atol=1e-5, rtol=1e-5)


def test_low_rank_keeps_the_strongest_directions_of_the_one_vector() -> None:
    text = latents(PROMPT + STEPS, rows=2)
    session, _ = run(LATENT, small("low_rank"), text, [PROMPT], 0)
    halves(session)
    keys = text.k.clone()
    for layer, row in ((0, 0), (0, 1), (1, 0), (1, 1)):
        (store,) = session.stores(layer)
        fine, coarse = store.parts
        assert coarse.lengths[row] > fine.lengths[row] > 0
        places = coarse.positions(row).long()
        came = keys[layer, row, 0, places].double()
        strongest = torch.linalg.svd(came).Vh[: (TURNED + RANK) // 2]
        keys[layer, row, 0, places] = (came @ strongest.T @ strongest).float()
        torch.testing.assert_close(coarse.keys(row, row + 1)[0], keys[layer, row, 0, places], atol=1e-5, rtol=1e-5)
    stored = [[[[*range(PROMPT + STEPS)]]] * 2] * 2
    out = drive.decode(session, text, PROMPT, STEPS)
    expected = dense.over_kept(replace(text, k=keys, v=keys[..., TURNED:]), Recipe.parse("low_rank"), stored, PROMPT)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


ROUNDED = ("ada", "zipvl")  # how many pages these fill depends on what is read


@pytest.mark.parametrize("name", [name for name in WORKING if not any(one in name for one in ROUNDED)])
def test_bytes_held_are_those_predicted_and_no_values_among_them(name: str) -> None:
    text, recipe = latents(PROMPT + STEPS), small(name)
    session, _ = run(LATENT, recipe, text, [PROMPT], 0)
    foretold = predicted_bytes(Plan.uniform(LATENT, recipe), PROMPT, torch.float32)
    assert session.cache_bytes() - session.memories.nbytes == foretold
    drive.decode(session, text, PROMPT, STEPS)
    assert session.cache_bytes() == session.predicted_bytes()
    assert session.dense_bytes() == (PROMPT + STEPS) * 2 * (TURNED + RANK) * 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_keys_or_values_alone_is_refused_by_name(name: str) -> None:
    with pytest.raises(PlanError, match=f"layer 0 has latent attention, but '{name}' {REFUSED[name]}"):
        Plan.uniform(LATENT, small(name))
    Plan.uniform(APART, small(name))
    Plan.uniform(LATENT, "cam(0.5, merge=0)")


@pytest.mark.parametrize("sentence", ["", "int8", "balanced(sinks=2, window=8)", "snapkv(0.3, window=8) | int4(16)"])
def test_saved_forked_cut_back_and_in_a_tier_it_goes_on_the_same(sentence: str, tmp_path: Path) -> None:
    text = latents(PROMPT + STEPS, rows=2)
    session, _ = run(LATENT, Recipe.parse(sentence), text, (60, 40), 2)
    save_session(session, tmp_path / "a.session")
    session.plan.save(tmp_path / "a.plan")
    loaded, _ = load_session(tmp_path / "a.session", Plan.read(tmp_path / "a.plan"))
    fork, cut = session.fork(), session.fork()
    drive.decode(cut, text, PROMPT + 2, 2)
    cut.truncate([PROMPT + 2] * 2)
    expected = drive.decode(session, text, PROMPT + 2, 3)
    for other in (loaded, fork, cut):
        assert torch.equal(drive.decode(other, text, PROMPT + 2, 3), expected)
    if sentence in ("", "int8"):
        far, _ = run(LATENT, Recipe.parse(sentence), text, (60, 40), 2, tier=Tier(24 * 1024))
        torch.testing.assert_close(drive.decode(far, text, PROMPT + 2, 3), expected, atol=1e-5, rtol=1e-5)


def test_rows_of_padding_and_several_tokens_a_step() -> None:
    text = latents(PROMPT + 3, rows=2)
    live = torch.ones(2, PROMPT, dtype=torch.bool)
    live[1, :37] = False
    session = Session(Plan.uniform(LATENT, ""), rows=2)
    outs = [drive.feed(session, text, 0, PROMPT, "prefill", live=live), drive.feed(session, text, PROMPT, 3, "decode")]
    out = torch.cat(outs, dim=3)
    for row, first in ((0, 0), (1, 37)):
        truth = dense.all_causal(text.rows([row]).since(first))
        torch.testing.assert_close(out[:, row : row + 1, :, first:].double(), truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 2, 48, 32), (4, 1, 16, 32)])
def test_a_latent_layer_has_one_head_whose_values_are_in_its_keys(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ShapeError, match="one KV head, whose values are channels of its keys"):
        LayerGeometry(*sizes, kind="latent")
