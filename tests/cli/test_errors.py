"""What cannot be done is refused in one line that names the value and the fix, with exit code 2 and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from headwise.assets import novel
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from tests.cli.conftest import Command

# options of `headwise run TINY`, what the line must name, what it must advise
REFUSED = [
    (["--share", "0"], "0", "0.2 keeps a fifth"),
    (["--share", "-0.5"], "-0.5", "above 0"),
    (["--share", "1.5"], "1.5", "at most 1.0"),
    (["--share", "nan"], "nan", "such as 0.2"),
    (["--memory", "12 parrots"], "12 parrots", "512MiB"),
    (["--memory", "1KiB"], "1.0 KiB", "give --memory"),
    (["--memory", "0MiB"], "0MiB", "512MiB"),
    (["--memory", "1MiB", "--share", "0.5"], "0.5", "give one of them"),
    (["--recipe", "snapkw(0.2)"], "snapkw", "did you mean 'snapkv'"),
    (["--recipe", "snapkv(window_size=8)"], "window_size", "did you mean 'window'"),
    (["--recipe", "snapkv(0.2"], "snapkv(0.2", "write it like"),
    (["--recipe", "snapkv(0)"], "0 tokens", "give 1 or more"),
    (["--recipe", "snapkv('1KiB')"], "36 tokens per KV head always stay", "KiB' or more"),
    (["--recipe", "snapkv('much')"], "'much'", "512MiB"),
    (["--recipe", "quest(1MiB)"], "1MiB", "bytes to an eviction"),
    (["--recipe", "snapkv(0.9)", "--share", "0.1"], "snapkv(0.9)", "without a budget to have it fitted"),
    (["--context", "4000"], "4000", "2048"),
    (["--context", "30"], "30", "give --context more"),
    (["--facts", "0"], "--facts 0", "give 1 or more"),
    (["--chunk", "8"], "8", "0 for one pass"),
    (["--ask", "who?"], "who?", "--prompt-file"),
    (["--prompt-file", "/no/such.txt"], "/no/such.txt", "check the path"),
    (["--plan", "/no/such.plan"], "/no/such.plan", "check the path"),
    (["--report", "/no/such/out.html"], "/no/such", "make it first"),
    (["--dtype", "float8"], "float8", "did you mean"),
    (["--device", "nonsense"], "nonsense", "--device cpu"),
    (["--resident", "lots"], "lots", "512MiB"),
    (["--resident", "1KiB", "--no-compare", "--recipe", "int8"], "1.0 KiB", "KiB or more"),
    (["--folder", "/tmp"], "/tmp", "say resident="),
    (["--recipe", "pasta"], "'pasta' steers", "--mark 'emphasis: the words'"),
    (["--mark", "emphasis: a word"], "emphasis: a word", "--prompt-file"),
    (["--mark", "a word"], "'a word'", "write it like"),
    (["--recipe", "act(heads='9')"], "layer 9", "0 to 2"),
]


def refused(result, *words: str) -> None:
    """One line on stderr with all the words, exit code 2."""
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    assert result.stderr.rstrip().endswith(lines[0])
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(("options", "named", "advised"), REFUSED, ids=lambda value: "")
def test_options(tiny: Path, headwise: Command, options: list[str], named: str, advised: str) -> None:
    refused(headwise("run", tiny, *options), named, advised)


@pytest.mark.parametrize("model", ["/no/such/model", "./nothing", "a/b/c"])
def test_no_such_model(headwise: Command, model: str) -> None:
    refused(headwise("run", model), str(Path(model)), "hub id")


def test_a_folder_that_is_no_model(headwise: Command, tmp_path: Path) -> None:
    refused(headwise("run", tmp_path), str(tmp_path), "config.json")


def test_texts_that_do_not_fit(tiny: Path, headwise: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("  \n")
    refused(headwise("run", tiny, "--prompt-file", text), "text.txt", "empty")
    text.write_text(novel()[:30_000])
    refused(headwise("run", tiny, "--prompt-file", text), "2048 positions", "shorten the text")
    text.write_text("A short text.")
    refused(headwise("run", tiny, "--prompt-file", text, "--ask", "Who?", "--template", "Q:"), "'Q:'", "{ask}")
    refused(headwise("run", tiny, "--prompt-file", text, "--ask", "Who?", "--template", "chat"), "chat", "{ask}")
    refused(headwise("run", tiny, "--prompt-file", text, "--context", "500"), "500", "leave it out")


def test_plans_that_do_not_fit(tiny: Path, headwise: Command, tmp_path: Path) -> None:
    seam, path = attach(load_model(tiny)), tmp_path / "other.plan"
    Plan.uniform(seam.geometry, "snapkv(0.5)", "0123456789abcdef").save(path)
    refused(headwise("run", tiny, "--plan", path), "0123456789abcdef", seam.fingerprint, "make a plan")
    path.write_bytes(path.read_bytes()[:-7])
    refused(headwise("run", tiny, "--plan", path), "other.plan", "damaged")


def test_a_model_with_an_unsupported_feature(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    refused(headwise("run", tmp_path), "ALiBi", "attends by itself")


def test_a_whole_prompt_method_refuses_chunks(headwise: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from headwise.methods.evict.keydiff import KeyDiff

    monkeypatch.setattr(KeyDiff, "card", replace(KeyDiff.card, chunking="whole_prompt"))
    refused(headwise("run", tiny, "--recipe", "keydiff(0.5)", "--chunk", "100"), "keydiff", "without chunks")


def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "headwise.cli.main", "run", "--share", "0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: --share 0")
