"""Models by path or hub id: what cannot be loaded is told within seconds, with what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from headwise.errors import HeadwiseError
from headwise.seams.transformers import load
from tests.tiny import build


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that no name server knows, and an empty cache."""
    monkeypatch.setattr(load.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(load.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("what", [load.load_model, load.load_tokenizer, load.load_meta])
def test_a_hub_id_without_a_network_fails_within_seconds_with_what_to_do(what: Any, no_network: None) -> None:
    start = time.perf_counter()
    with pytest.raises(HeadwiseError, match="hf download someone/some-model") as told:
        what("someone/some-model")
    assert time.perf_counter() - start < 10
    assert "hub.invalid does not answer" in str(told.value) and "\n" not in str(told.value)


def test_offline_mode_is_named(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HeadwiseError, match="HF_HUB_OFFLINE is set"):
        load.load_tokenizer("someone/some-model")


def test_a_model_in_the_cache_is_loaded_without_asking_the_hub(
    no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = build(tmp_path / "tiny")
    asked: list[dict[str, Any]] = []

    class Loader:
        @staticmethod
        def from_pretrained(name: str, **how: Any) -> str:
            asked.append(how)
            return name

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(folder / "config.json"))
    assert load._loaded(Loader, "someone/some-model", "model") == "someone/some-model"
    assert asked == [{"local_files_only": True, "trust_remote_code": False}]


def test_a_single_file_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HeadwiseError, match="give the folder that holds it"):
        load.load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["model.gguf", "/no/such/model.gguf"])
def test_a_gguf_file_that_is_not_there_is_not_asked_for_at_the_hub(name: str) -> None:
    with pytest.raises(HeadwiseError, match=r"there is no file .*model.gguf; check the path"):
        load.load_model(name)


@pytest.mark.parametrize("what", [load.load_model, load.load_config, load.load_tokenizer, load.load_meta])
def test_a_pretrained_model_that_was_not_fetched_is_told_how_to_get_it(
    what: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(HeadwiseError, match="'smollm2' is not here; get it with `headwise models get smollm2`"):
        what("smollm2")


def test_a_pretrained_model_is_loaded_by_its_short_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build(tmp_path / "headwise" / "models" / "smollm2")
    assert load.located("smollm2") == str(folder)
    meta = load.load_meta("smollm2")
    assert load.weight_bytes("smollm2", meta) == load.weight_bytes(folder, meta)
    assert load.load_model("smollm2").config.hidden_size == load.load_config("smollm2").hidden_size == 64


def test_a_folder_of_that_name_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "smollm2")
    assert load.located("smollm2") == "smollm2" and load.load_config("smollm2").hidden_size == 64
