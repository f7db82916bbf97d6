"""A look that was saved: all of it comes back, a page puts it beside a later one, and another model's is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from headwise.cli.main import app
from headwise.errors import FileError
from headwise.report.lens_file import read_look
from tests import tiny

ASKED = ["--heads", "1.1", "--measure", "previous", "--measure", "entropy"]


def run(*asked: object) -> Any:
    return CliRunner().invoke(app, ["lens", *map(str, asked), *ASKED])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, and a look into it that was saved."""
    folder = tmp_path_factory.mktemp("look")
    tiny.build(folder / "model")
    (folder / "text.txt").write_text("All that is written here is read once and once again. " * 4)
    found = run(folder / "model", "--out", folder / "one.html", "--save", folder / "look.safetensors", "--json")
    assert found.exit_code == 0, found.output
    (folder / "told.json").write_text(found.stdout)
    return folder


def test_all_of_a_look_comes_back(place: Path) -> None:
    told = json.loads((place / "told.json").read_text())
    found, drawn = read_look(place / "look.safetensors", told["fingerprint"], "tiny")
    figures = found.pop("figures")
    assert found == {name: value for name, value in told.items() if name != "figures"}
    for name, rows in told["figures"].items():
        assert torch.allclose(torch.tensor(figures[name]), torch.tensor(rows))
    assert {"tile"} < drawn.keys()


def test_other_programs_read_its_figures(place: Path) -> None:
    told = json.loads((place / "told.json").read_text())
    with safe_open(place / "look.safetensors", "pt") as stream:
        assert torch.equal(stream.get_tensor("figures.entropy"), torch.tensor(told["figures"]["entropy"]))


def test_a_page_puts_it_beside_a_later_look(place: Path) -> None:
    out, text = place / "two.html", place / "text.txt"
    found = run(place / "model", "--prompt-file", text, "--beside", place / "look.safetensors", "--out", out, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    earlier = json.loads((place / "told.json").read_text())
    assert told["prompt"] == "text.txt" and told["beside"]["figures"] == earlier["figures"]
    assert out.read_text().count('"fingerprint"') == 2


def test_a_look_into_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = tiny.build(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    model.save_pretrained(other)
    found = run(other, "--beside", place / "look.safetensors", "--out", tmp_path / "page.html")
    assert found.exit_code == 2 and "look into both at once with --beside-model" in " ".join(found.output.split())
    assert not (tmp_path / "page.html").exists()


def test_files_that_are_no_looks_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no file at"):
        read_look(tmp_path / "none.safetensors", "x", "tiny")
    (tmp_path / "cut.safetensors").write_bytes((place / "look.safetensors").read_bytes()[:-9])
    with pytest.raises(FileError, match="damaged"):
        read_look(tmp_path / "cut.safetensors", "x", "tiny")


def test_a_page_compares_one_thing(place: Path) -> None:
    found = run(place / "model", "--plan", "int8", "--beside", place / "look.safetensors")
    assert found.exit_code == 2 and "a page compares one thing" in found.output
