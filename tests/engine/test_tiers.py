"""A model whose cache is far larger than what may be near: the same tokens, less memory, every byte counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import headwise
from headwise.cache.tiers import Tier, given_tier
from headwise.cache.tiers.store import TieredStore
from headwise.engine.session import Session
from headwise.errors import HeadwiseError, SessionError
from headwise.plan import Plan
from headwise.seams.transformers.drive import decode, feed, prefill
from headwise.seams.transformers.load import load_model
from tests.contract.drive import Text, everything, geometry, small
from tests.contract.drive import decode as decode_session
from tests.contract.drive import prefill as prefill_session
from tests.tiny import build

TOKENS, NEW = 600, 24
RECIPES = ["", "int8", "quest(96)", "exact_topk(64)", "snapkv(0.5)", "h2o(0.5) | quest(64)", "a_shape", "raas(0.5)"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    model = load_model(build(tmp_path_factory.mktemp("tiny")), "float32")
    model.generation_config.eos_token_id = None
    return model


def prompt(tokens: int = TOKENS, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 512, (1, tokens), generator=torch.Generator().manual_seed(seed))


def answered(model: PreTrainedModel, cache: headwise.Cache) -> list[int]:
    return decode(model, cache, prefill(model, cache, prompt(), 200), NEW)[0].tolist()


def near_bytes(cache: headwise.Cache) -> int:
    """Keys and values in memory, by the storages that hold them."""
    stores = [part for group in cache.session.groups for part in group.store.parts]
    assert stores and all(isinstance(store, TieredStore) for store in stores)
    return sum(plane.untyped_storage().nbytes() for store in stores for plane in store.pages.swap.planes.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cache_four_times_the_cap_answers_the_same(model: PreTrainedModel, recipe: str) -> None:
    resident = headwise.Cache(model, recipe)
    expected = answered(model, resident)
    stored = sum(resident.session.lengths(layer).sum().item() for layer in range(3)) * 2 * 16 * 4
    cap = int(stored * (0.3 if recipe == "int8" else 1)) // 4
    cache = headwise.Cache(model, recipe, resident=cap)
    assert answered(model, cache) == expected
    assert near_bytes(cache) <= cap < resident.nbytes / 3
    ledger = cache.session.ledger
    assert ledger.tokens == {"prefill": TOKENS, "decode": NEW - 1}
    assert ledger.moved.total() == cache.session.moved_bytes() > 0
    assert resident.session.moved_bytes() == 0 and "resident" not in resident.report()
    assert f"{headwise.shapes.format_bytes(ledger.moved_per_token('decode'))} a token (decode)" in cache.report()


def test_a_selection_moves_less_than_everything(model: PreTrainedModel) -> None:
    moved = {}
    for recipe in ("", "exact_topk(32)", "quest(32, skip_layers=0)"):
        cache = headwise.Cache(model, recipe, resident="40KiB")
        answered(model, cache)
        moved[recipe] = cache.session.ledger.moved_per_token("decode")
    whole = TOKENS * 3 * 2 * 2 * 16 * 4
    near = 40 * 1024
    assert 0.9 * (whole - near) < moved[""] < 1.1 * whole  # to and fro: what was read last is not read again
    assert moved["quest(32, skip_layers=0)"] < moved["exact_topk(32)"] / 2  # page bounds are near, all keys are not
    assert moved["exact_topk(32)"] < 0.8 * moved[""]  # which reads all keys, and of the values only the chosen


def test_forks_turns_truncation_and_files(model: PreTrainedModel, tmp_path: Path) -> None:
    def go(**where: str) -> list[list[int]]:
        cache = headwise.Cache(model, "quest(64)", **where)
        prefill(model, cache, prompt(), 200)
        fork = cache.fork()
        out = [decode(model, fork, feed(model, fork, prompt(9, 1)), 12)[0].tolist()]
        out.append(decode(model, cache, feed(model, cache, prompt(40, 2)), 12)[0].tolist())
        cache.truncate(TOKENS + 5)
        out.append(decode(model, cache, feed(model, cache, prompt(3, 3)), 12)[0].tolist())
        cache.save(tmp_path / "kept")
        again = headwise.Cache.load(model, "quest(64)", tmp_path / "kept", **where)
        return [*out, decode(model, again, feed(model, again, prompt(3, 4)), 12)[0].tolist()]

    assert go(resident="48KiB", folder=str(tmp_path)) == go()


def test_a_padded_batch_equals_its_rows(model: PreTrainedModel) -> None:
    long, short = prompt(500, 1), prompt(300, 2)
    ids = torch.cat((long, torch.cat((torch.zeros(1, 200, dtype=torch.int64), short), 1)))
    mask = torch.ones_like(ids)
    mask[1, :200] = 0
    how = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    batch = model.generate(
        ids, attention_mask=mask, past_key_values=headwise.Cache(model, "", resident="96KiB"), **how
    )[:, 500:]
    for row, one in zip(batch, (long, short), strict=True):
        alone = model.generate(one, past_key_values=headwise.Cache(model, ""), **how)[0, one.shape[1] :]
        assert row.tolist() == alone.tolist()


@pytest.mark.parametrize("name", everything())
def test_every_method_reads_from_a_tier_or_is_refused_by_name(name: str) -> None:
    text, plan = Text.random(geometry(), 130), Plan.uniform(geometry(), small(name))
    expected = _read(Session(plan), text)
    try:
        got = _read(Session(plan, tier=Tier(40 * 1024)), text)
    except HeadwiseError as refusal:
        assert "leave resident= out" in str(refusal)
        return
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def _read(session: Session, text: Text) -> torch.Tensor:
    """A prompt and ten steps."""
    prefill_session(session, text, [100])
    return decode_session(session, text, 100, 10)


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "a\0b"])
def test_a_folder_that_takes_no_file_is_named(folder: str) -> None:
    tier = given_tier("1MiB", folder)
    with pytest.raises(SessionError, match="give another folder="):
        Session(Plan.uniform(geometry(), "dense"), tier=tier)
