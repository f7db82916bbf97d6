"""Network, training loop, checkpoints, export and measurement of the embedded model."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from headwise.errors import FileError
from headwise.models.embedded import state
from headwise.models.embedded.compose import KINDS
from headwise.models.embedded.export import export, llama_config
from headwise.models.embedded.measure import Scope, measure
from headwise.models.embedded.network import Network
from headwise.models.embedded.recipe import Recipe, default_recipe, tiny_recipe
from headwise.models.embedded.state import Optimizers, Position, read_checkpoint, save_checkpoint
from headwise.models.embedded.throughput import throughput
from headwise.models.embedded.train import CHECKPOINT, LOG, Options, Trainer, train
from headwise.models.embedded.watch import family_accuracies, family_losses

QUIET = Options(workers=0, device="cpu", log_steps=2, valid_steps=4)


def _weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(out / CHECKPOINT).network
    return found


def test_network_equals_transformers() -> None:
    arch = replace(default_recipe().architecture, layers=3, vocab=300)
    network = Network(arch)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other = LlamaForCausalLM(LlamaConfig(**llama_config(arch, "float32"))).float().eval()  # type: ignore[arg-type]
    missing = other.load_state_dict(network.state_dict(), strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys
    other.tie_weights()
    ids = torch.randint(0, arch.vocab, (2, 130))
    assert torch.allclose(other(ids).logits, network(ids), atol=1e-4)


def test_default_architecture_has_the_promised_size() -> None:
    arch = default_recipe().architecture
    count = sum(p.numel() for p in Network(arch).parameters())
    assert count * 2 < 15e6 and arch.layers * arch.kv_heads >= 32


def test_too_many_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="1024 positions"):
        Network(tiny_recipe().architecture)(torch.zeros(1, 1025, dtype=torch.long))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_unbroken_run(data: Path, tmp_path: Path, optimizer: str) -> None:
    recipe = replace(tiny_recipe(), optimizer=optimizer)
    assert train(recipe, data, tmp_path / "whole", QUIET)
    calls = 0
    while not train(recipe, data, tmp_path / "parts", replace(QUIET, minutes=1e-9)):
        calls += 1
        assert calls < 50
    assert calls >= 5
    whole, parts = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert all(torch.equal(whole[n], parts[n]) for n in whole)
    events = [json.loads(line) for line in (tmp_path / "parts" / LOG).read_text().splitlines()]
    assert events[-1]["event"] == "finished" and events[-1]["tokens_M"] == round(recipe.total_tokens / 1e6, 2)


def test_another_recipe_is_refused(data: Path, tmp_path: Path) -> None:
    train(tiny_recipe(), data, tmp_path, replace(QUIET, minutes=1e-9))
    with pytest.raises(ValueError, match="same settings"):
        train(replace(tiny_recipe(), lr=0.1), data, tmp_path, QUIET)
    with pytest.raises(ValueError, match="adamw"):
        Recipe(optimizer="sgd")


def test_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe()
    network = Network(recipe.architecture)
    optimizers = Optimizers(recipe, network, fused=False)
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, recipe, network, optimizers, Position(step=3))
    before = path.read_bytes()

    def broken(payload: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(state.torch, "save", broken)
    with pytest.raises(FileError, match="disk full"):
        save_checkpoint(path, recipe, network, optimizers, Position(step=4))
    assert path.read_bytes() == before and read_checkpoint(path).position.step == 3


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code_and_is_not_written_through_a_link(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    torch.save({"recipe": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(FileError, match="is no checkpoint of this version"):
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()
    torch.save({"recipe": {}}, path)
    with pytest.raises(FileError, match="'fingerprint' is missing"):
        read_checkpoint(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(FileError, match="is no checkpoint"):
        read_checkpoint(path)
    path.unlink()
    (tmp_path / "victim").write_text("mine")
    path.with_name(path.name + ".writing").symlink_to(tmp_path / "victim")
    recipe = tiny_recipe()
    network = Network(recipe.architecture)
    save_checkpoint(path, recipe, network, Optimizers(recipe, network, fused=False), Position(step=3))
    assert (tmp_path / "victim").read_text() == "mine" and read_checkpoint(path).recipe == recipe


def test_sigterm_stops_with_a_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def killed(self: Trainer, *args: object) -> object:
        os.kill(os.getpid(), 15)
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", killed)
    assert not train(tiny_recipe(), data, tmp_path, QUIET)
    assert read_checkpoint(tmp_path / CHECKPOINT).position.step == 1


def test_learning_rate_warms_up_holds_and_decays() -> None:
    recipe = default_recipe()
    first, last, total = recipe.stages[0], recipe.stages[-1], recipe.total_tokens
    assert recipe.lr_at(0, first) == 0 and recipe.lr_at(total // 2, first) == 1
    assert recipe.lr_at(total, last) == 0 and 0 < recipe.lr_at(int(total * 0.95), last) < 0.3 * last.lr_share
    assert recipe.scaled(0.5).total_tokens == pytest.approx(total / 2, rel=0.01)


def test_accuracy_counts_whole_answers() -> None:
    tags = torch.tensor([[0, 1 + KINDS, 1 + KINDS, 2 + 2 * KINDS], [1 + KINDS, 1 + KINDS, 7, 0]])
    hits = torch.tensor([[True, True, False, True], [True, True, False, False]])
    assert family_accuracies(hits, tags) == {"needle": 0.5, "kv": 1.0}
    assert family_losses(torch.ones(2, 4), tags) == {"text": 1.0, "needle": 1.0, "kv": 1.0}


def test_micro_batches_change_nothing_but_rounding(data: Path) -> None:
    from headwise.models.embedded.data import composer_of, make_batch

    recipe = tiny_recipe()
    batch = make_batch(composer_of(data, "train"), recipe.stages[0], "x")
    results = []
    for micro in (64, 512):
        trainer = Trainer(recipe, replace(QUIET, micro_tokens=micro))
        nll, _, norm = trainer.step(batch, 1.0)
        results.append([float(nll.mean()), float(norm)])
    assert results[0] == pytest.approx(results[1], rel=0.02)  # bfloat16 rounding; a lost row would show


def test_throughput_has_a_row_per_stage(data: Path) -> None:
    rows = list(throughput(tiny_recipe(), data, QUIET, seconds=0.01))
    assert [r["context"] for r in rows] == [64, 128] and all(r["tokens_per_s"] > 0 for r in rows)


def test_export_and_measure(data: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    train(recipe, data, tmp_path / "run", QUIET)
    folder = export(tmp_path / "run" / CHECKPOINT, data, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM) and model.dtype == torch.bfloat16
    ids = tokenizer("The secret number is", return_tensors="pt").input_ids
    network = Network(recipe.architecture)
    network.load_state_dict(_weights(tmp_path / "run"))
    assert torch.allclose(model.float()(ids).logits, network(ids), atol=5e-2)
    figures = measure(folder, data, tmp_path / "card", Scope(1, (900, 1024), 1), "cpu")
    assert set(figures["needle"]["grid"]) == {"900", "1024"} and len(figures["needle"]["grid"]["1024"]) == 10
    assert figures["perplexity"]["tokens"] == 1023
    assert "Needle accuracy" in (tmp_path / "card" / "card.md").read_text()
