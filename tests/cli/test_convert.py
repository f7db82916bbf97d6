"""`headwise convert`: a folder with its report, what is refused, and a distillation that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.convert.distil import Distilling, distilled
from headwise.convert.judged import judged
from headwise.convert.run import _stored
from headwise.convert.texts import Book, losses
from headwise.errors import ContextError, FileError, UnsupportedModel
from headwise.seams.transformers.load import load_model, load_pair
from tests.cli.conftest import Command

SMALL = ("--windows", "4", "--tokens", "32", "--needles", "5", "--context", "300")


def test_a_folder_with_its_report(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("convert", tiny, "--to", "mla", "--out", out, *SMALL)
    shown = headwise(*command)
    assert shown.exit_code == 0, shown.stderr
    assert "passed: within 5 %" in shown.stdout and "needles at 100%" in shown.stdout
    report = json.loads((out / "conversion.json").read_text())
    assert report["bytes_a_token"] == [4 * 3 * 64, 4 * 3 * 65] and abs(report["ratio"]["mean"] - 1) < 1e-4
    tokenizer, model = load_pair(str(out), "float32")
    told = model.config.headwise_conversion
    assert (told["to"], told["experimental"]) == ("mla", False)
    windows = Book.of(tokenizer, "test").evenly(2, 32)
    assert losses(model, windows) == pytest.approx(losses(load_model(tiny, "float32"), windows), abs=1e-4)
    again = headwise(*command)
    assert again.exit_code == 2 and "holds this conversion already" in again.stderr
    other = headwise("convert", tiny, "--to", "gqa", "--out", out, *SMALL)
    assert other.exit_code == 2 and "holds other files" in other.stderr


@pytest.mark.parametrize(
    ("to", "model", "named"),
    [
        ("mli", "nowhere", "did you mean"),
        ("mla(rank=99)", "TINY", "a latent of 99 channels is wider"),
        ("mla", "./nowhere", "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused(
    headwise: Command, tiny: Path, tmp_path: Path, to: str, model: str, named: str
) -> None:
    found = headwise("convert", model.replace("TINY", str(tiny)), "--to", to, "--out", tmp_path / "out", *SMALL)
    assert found.exit_code == 2 and named in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_in_float16_is_refused(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="save it in bfloat16"):
        _stored(str(tmp_path))


class Stopped(Exception):
    """Somebody stops the distillation."""


def test_a_stopped_distillation_goes_on(tiny: Path, tmp_path: Path) -> None:
    teacher, how = load_model(tiny, "float32"), Distilling(steps=3, batch=2, tokens=16)
    book = Book(torch.randint(512, (400,), generator=torch.Generator().manual_seed(0)))

    def student() -> Any:
        model = load_model(tiny, "float32")
        model.model.layers[0].self_attn.v_proj.weight.data.mul_(0.5)
        return model

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    whole, cut = student(), student()
    before = cut.lm_head.weight.clone()
    distilled(whole, teacher, book, how, tmp_path / "whole", "it", lambda *told: None)
    (tmp_path / "cut").mkdir()
    with pytest.raises(Stopped):
        distilled(cut, teacher, book, how, tmp_path / "cut", "it", stop)
    cut = student()
    distilled(cut, teacher, book, how, tmp_path / "cut", "it", lambda *told: None)
    assert torch.equal(cut.lm_head.weight, whole.lm_head.weight) and not torch.equal(before, whole.lm_head.weight)
    with pytest.raises(FileError, match="give the same settings"):
        distilled(student(), teacher, book, Distilling(steps=4), tmp_path / "cut", "it", lambda *told: None)


@pytest.mark.parametrize(
    ("factor", "needles", "experimental"), [(1.0, 10, False), (1.04, 10, False), (1.06, 10, True), (1.0, 9, True)]
)
def test_what_passes(factor: float, needles: int, experimental: bool) -> None:
    above = float(torch.tensor(factor).log())
    source = {"losses": [2.0, 3.0, 4.0], "needles": [True] * 10}
    made = {"losses": [one + above for one in (2.0, 3.0, 4.0)], "needles": [True] * needles + [False] * (10 - needles)}
    found = judged(source, made, (100, 50), 2)
    assert found["experimental"] == experimental and found["bytes_a_token"] == [200, 100]
    assert found["ratio"]["mean"] == pytest.approx(factor, rel=1e-4)


def test_windows_are_beside_one_another_or_refused() -> None:
    book = Book(torch.arange(100))
    assert book.evenly(3, 20)[:, 0].tolist() == [0, 40, 80]
    assert torch.equal(book.drawn(2, 10, 5), book.drawn(2, 10, 5))
    with pytest.raises(ContextError, match="has no 6 windows of 20 tokens"):
        book.evenly(6, 20)
    with pytest.raises(ContextError, match="has no window of 100"):
        book.drawn(1, 100, 0)
