"""Fit: what is told before anything is loaded agrees with what then happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headwise.assets import embedded_model
from headwise.cost.fit import ALLOCATED, Machine, Predictor
from headwise.cost.meta_model import MetaModel, _Meter
from headwise.errors import ContextError, HeadwiseError
from headwise.kernels.native import library
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, attach
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.load import load_meta, load_model, weight_bytes
from tests.cli.conftest import Command, headwise, tiny  # noqa: F401 (fixtures)
from tests.seams.transformers.unlike import gemma4, llama

MACHINE = Machine(flops=1e11, attention=1e11, bandwidth=1e10, call_s=1e-5, runtime=100 << 20)


def predictor(folder: Path | str, recipe: str = "", **settings: int) -> Predictor:
    """On a machine whose constants are known."""
    model = MetaModel(load_meta(folder))
    one = Predictor(model, weight_bytes(folder, model.model), Plan.uniform(model.geometry, recipe), **settings)
    one.machine = MACHINE
    return one


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_meta_model_knows_what_a_loaded_one_shows(tiny: Path, dtype: str) -> None:  # noqa: F811
    for folder in (tiny, embedded_model()):
        model, meta = load_model(folder, dtype), load_meta(folder, dtype)
        assert MetaModel(meta).geometry == attach(model).geometry
        assert meta.dtype == model.dtype and all(one.is_meta for one in meta.parameters())
        held = sum(one.numel() * one.element_size() for one in model.parameters())
        assert weight_bytes(folder, meta) == weight_bytes("no/folder", meta) == held


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as this machine is, once as one that could not build them."""
    if request.param == "torch":
        monkeypatch.setattr(library, "best_level", lambda: None)
        monkeypatch.setattr(library, "missing", lambda: "the native kernels are not built")


@pytest.mark.parametrize("recipe", ["", "snapkv(0.3)", "int8", "int4"])
def test_bytes_alive_are_those_predicted(tiny: Path, kernels: None, recipe: str) -> None:  # noqa: F811
    model = load_model(tiny)
    cache, ids = Cache(model, recipe), torch.randint(2, 512, (1, 1600))
    with (meter := _Meter(model)):
        prefill(model, cache, ids, 400)
    told = predictor(tiny, recipe, chunk=400).fit(1600)
    assert 0.9 < (told.cache + told.workspace / ALLOCATED) / meter.peak < 1.1
    assert told.peak == MACHINE.runtime + told.weights + told.cache + told.workspace
    assert told.cache <= 1.01 * cache.nbytes <= 1.02 * told.cache


@pytest.mark.parametrize("build", [llama, gemma4])
@pytest.mark.parametrize("recipe", ["", "snapkv(0.3)", "int8"])
def test_bytes_alive_are_those_predicted_where_layers_differ(recipe: str, build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    with torch.device("meta"):
        meta = MetaModel(type(model)(model.config))
    cache, ids = Cache(model, recipe), torch.randint(2, 128, (1, 500))
    with (meter := _Meter(model)):
        prefill(model, cache, ids, 100)
    one = Predictor(meta, 0, Plan.uniform(meta.geometry, recipe), chunk=100)
    one.machine = MACHINE
    told = one.fit(500)
    assert 0.85 < (told.cache + told.workspace / ALLOCATED) / meter.peak < 1.15
    assert told.cache <= 1.01 * cache.nbytes <= 1.02 * told.cache and told.prompt_s > told.token_s > 0


def test_a_forward_costs_its_products(tiny: Path) -> None:  # noqa: F811
    meta = MetaModel(load_meta(tiny))
    layers = 3 * 2 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96)
    work = meta.work(10, batch=2)
    assert sum(flops for flops, _ in work.operations) == 2 * 10 * layers + 2 * 2 * 64 * 512  # logits of the last alone
    assert 0 < work.attending < work.peak


def test_the_longest_context_fits_and_the_next_does_not(tiny: Path) -> None:  # noqa: F811
    one = predictor(tiny, memory=(100 << 20) + 3_000_000)
    found = one.largest()
    assert 1 < found.tokens < 2048 and found.fits and not one.fit(found.tokens + 1).fits
    more = predictor(tiny, "snapkv(0.2)", memory=one.memory).largest()
    assert more.tokens > found.tokens
    assert predictor(tiny, batch=2, memory=one.memory).largest().tokens < found.tokens


def test_time_grows_as_work_does(tiny: Path) -> None:  # noqa: F811
    short, long = (predictor(tiny, chunk=256).fit(tokens) for tokens in (512, 1024))
    assert 2 * short.prompt_s < long.prompt_s < 4 * short.prompt_s
    assert short.token_s < long.token_s
    assert predictor(tiny, "snapkv(0.1)", chunk=256).fit(1024).token_s < long.token_s


def test_refusals_say_what_to_do(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ContextError, match="2048 positions; give 1 to 2048"):
        predictor(tiny).fit(3000)
    with pytest.raises(ContextError, match="--batch 0"):
        predictor(tiny, batch=0)
    with pytest.raises(ContextError, match="--chunk 5 is too small"):
        predictor(tiny, chunk=5)
    with pytest.raises(ContextError, match="give --available"):
        predictor(tiny, memory=1 << 20).largest()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom", "n_layer": 1, "hidden_size": 16}))
    assert "ALiBi" in str(MetaModel(load_meta(tmp_path)).by_itself)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(HeadwiseError, match="no causal language model"):
        load_meta(tmp_path)


def test_the_command(tiny: Path, headwise: Command) -> None:  # noqa: F811
    found = headwise("fit", tiny, "--context", 1000, "--recipe", "snapkv(0.5)", "--json")
    told = json.loads(found.stdout)
    assert found.exit_code == 0 and told["fits"] and told["tokens"] == 1000 and told["runtime"] > 100 << 20
    tight = headwise("fit", tiny, "--context", 1000, "--available", "100MiB")
    assert tight.exit_code == 1 and "DOES NOT FIT" in tight.stdout and "--context (auto" in tight.stdout
    for wrong, words in (
        (("--context", "much"), "write it like 8192 or 32k"),
        (("--recipe", "int8", "--plan", "a.plan"), "give one of them"),
    ):
        refused = headwise("fit", tiny, *wrong)
        assert refused.exit_code == 2 and words in " ".join(refused.stderr.split())
