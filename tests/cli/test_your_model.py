"""Models as users have them, by the command line: what cannot be is one line with what to do, and never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.assets import novel
from headwise.bench.job import encode
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import generate
from headwise.seams.transformers.load import load_model, load_tokenizer
from headwise.shapes import format_bytes
from tests.cli.conftest import Command
from tests.cli.test_errors import refused
from tests.seams.transformers import test_from_gguf as files

PROGRAM = "from transformers import LlamaConfig\nopen({mark!r}, 'w').close()\nclass Mine(LlamaConfig): pass\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def gguf_file(tmp_path: Path, cache: None) -> Path:
    files.write(tmp_path / "model.gguf", files.model())
    return tmp_path / "model.gguf"


def test_a_gguf_file_is_a_model_for_every_command(headwise: Command, gguf_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat and the hat")
    ran = headwise("run", gguf_file, "--prompt-file", text, "--max-new-tokens", 3, "--no-compare", "--recipe", "int8")
    assert ran.exit_code == 0, ran.output
    assert (
        "2 layers of 2 KV heads, bfloat16"
        in headwise("explain", "snapkv(0.9) | int8", tmp_path, "--context", 64).stdout
    )
    assert headwise("fit", gguf_file, "--context", 64).exit_code == 0


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.99])
def test_a_file_that_was_downloaded_in_part(headwise: Command, gguf_file: Path, share: float) -> None:
    whole = gguf_file.read_bytes()
    gguf_file.write_bytes(whole[: max(8, int(share * len(whole)))])
    size = format_bytes(gguf_file.stat().st_size)
    refused(headwise("run", gguf_file), "model.gguf", "downloaded in part", size, "download it again")


def test_a_file_that_is_no_gguf_file(headwise: Command, gguf_file: Path) -> None:
    gguf_file.write_text("<!DOCTYPE html><title>Log in</title>")
    refused(headwise("run", gguf_file), "model.gguf is no GGUF file", "b'<!DO'", "check what was downloaded")


def test_weights_of_a_kind_that_nobody_knows(headwise: Command, gguf_file: Path) -> None:
    data = gguf_file.read_bytes()
    name = b"blk.0.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and two of them
    gguf_file.write_bytes(data[:at] + (999).to_bytes(4, "little") + data[at + 4 :])
    refused(headwise("run", gguf_file), "999", "another quantisation", "Q8_0")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.type", "mmproj", ("a GGUF 'mmproj'", "the model itself")),
        ("split.count", 3, ("one of 3 parts", "--merge")),
    ],
)
def test_files_that_are_no_whole_model(
    headwise: Command, gguf_file: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, words: tuple[str, ...]
) -> None:
    import gguf

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def write_header_to_file(self, *more: Any) -> None:
            self.add_string(key, value) if isinstance(value, str) else self.add_uint16(key, value)
            super().write_header_to_file(*more)

    monkeypatch.setattr(gguf, "GGUFWriter", Writer)
    files.write(gguf_file, files.model())
    refused(headwise("run", gguf_file), *words)


def test_an_architecture_that_transformers_does_not_read(headwise: Command, gguf_file: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes().replace(b"llama", b"lxxma"))
    refused(headwise("run", gguf_file), "cannot read model.gguf", "lxxma", "install the newest transformers")


def test_safetensors_that_were_downloaded_in_part(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(headwise("run", tmp_path / "model"), "cannot load a model", "incomplete")


def test_a_tokenizer_of_another_model(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    small = files.model()  # embeddings of fewer tokens
    small.save_pretrained(tmp_path / "model")
    for command in ("run", "chat", "tune"):
        more = ("--context", "100") if command != "chat" else ()
        refused(headwise(command, tmp_path / "model", *more), "the tokenizer has 512 tokens", "not of one model")


def test_programs_of_a_model_are_not_run_unasked(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    place, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny, place)
    (place / "mine.py").write_text(PROGRAM.format(mark=str(mark)))
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "nobodys", "auto_map": {"AutoConfig": "mine.Mine"}}
    (place / "config.json").write_text(json.dumps(config))
    for command in ("run", "chat", "fit"):
        refused(headwise(command, place), "programs of its own", "--trust-remote-code")
    assert not mark.exists()
    headwise("run", place, "--trust-remote-code")
    assert mark.exists()


def test_a_picture_is_no_text(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    for command in ("run", "chat"):
        refused(headwise(command, tiny, "--prompt-file", picture), "picture.png is no text", ".txt file")


def test_adapters_that_cannot_be_put_on(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    refused(headwise("run", tiny, "--adapter", tmp_path), "no adapter_config.json", "PEFT's save_pretrained")
    pytest.importorskip("peft", reason="until peft is installed")
    adapter(load_model(tiny), tmp_path / "own")
    config = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["no_such"]}))
    refused(headwise("run", tiny, "--adapter", tmp_path / "own"), "does not go onto", "trained for")


def adapter(model: Any, folder: Path) -> None:
    """Write a LoRA adapter that changes what the model says."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder)


def test_an_adapter_is_run_with(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="until peft is installed")
    torch.manual_seed(1)
    adapter(load_model(tiny), tmp_path / "lora")
    text = tmp_path / "text.txt"
    text.write_text(novel()[:800])
    tokenizer, found = load_tokenizer(tiny), {}
    for more in ((), ("--adapter", tmp_path / "lora")):
        ran = headwise("run", tiny, "--prompt-file", text, "--no-compare", "--recipe", "int8", "--json", *more)
        assert ran.exit_code == 0, ran.output
        found[bool(more)] = json.loads(ran.stdout)
    assert found[True]["model_fingerprint"] != found[False]["model_fingerprint"]
    assert found[True]["rows"][0]["answers"] != found[False]["rows"][0]["answers"]

    merged = peft.PeftModel.from_pretrained(load_model(tiny), tmp_path / "lora").merge_and_unload()
    wrapped = peft.PeftModel.from_pretrained(load_model(tiny), tmp_path / "lora").eval()
    ids = encode(tokenizer, novel()[:800], start=True)
    expected = generate(merged, Cache(merged, ""), ids, 8)
    inside = wrapped.get_base_model()
    assert torch.equal(generate(inside, Cache(inside, ""), ids, 8), expected)
    with wrapped.disable_adapter():
        assert not torch.equal(generate(inside, Cache(inside, ""), ids, 8), expected)
