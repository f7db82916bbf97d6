"""What the options alone tell to be wrong is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import headwise.bench.cells.pool  # noqa: F401  (it takes load_model when first imported)
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from tests.cli.conftest import Command
from tests.cli.test_errors import refused

MODEL = "{model}"
# arguments, and what the line names; the model has a config.json and no weights
REFUSED = [
    (["run", MODEL, "--recipe", "snapkw(0.2)"], ("did you mean 'snapkv'",)),
    (["run", MODEL, "--plan", "{at}/no.plan"], ("no.plan", "check the path")),
    (["run", MODEL, "--plan", "{at}/text.plan"], ("text.plan", "damaged")),
    (["run", MODEL, "--plan", "{at}/other.plan"], ("2 layers", "has 3", "make a plan for")),
    (["run", MODEL, "--context", "99999"], ("--context 99999", "give 1 to 2048")),
    (["run", MODEL, "--share", "two"], ("--share two", "such as 0.25")),
    (["run", MODEL, "--memory", "12 parrots"], ("--memory", "12 parrots")),
    (["run", MODEL, "--dtype", "float8"], ("float8", "did you mean")),
    (["run", MODEL, "--device", "nonsense"], ("nonsense", "--device cpu")),
    (["run", MODEL, "--report", "{at}"], ("--report", "is a folder")),
    (["speed", "snapkw", MODEL], ("did you mean 'snapkv'",)),
    (["speed", "{at}/no.plan", MODEL], ("no.plan", "check the path")),
    (["speed", "{at}/other.plan", MODEL], ("2 layers", "has 3")),
    (["speed", "int8", MODEL, "--new-tokens", "1"], ("1 new tokens", "at least 2 and 3")),
    (["speed", "int8", MODEL, "--repetitions", "2"], ("2 repetitions", "at least 2 and 3")),
    (["speed", "int8", MODEL, "--context", "100,many"], ("--context many", "like 8192 or 32k")),
    (["speed", "int8", MODEL, "--context", "2040"], ("2040 with 32 new tokens", "give 1 to 2016")),
    (["speed", "int8", MODEL, "--batch-memory", "lots"], ("--batch-memory", "lots")),
    (["tune", MODEL, "--memory", "1MiB", "--share", "0.1"], ("give one of them",)),
    (["tune", MODEL, "--memory", "much"], ("--memory", "much")),
    (["tune", MODEL, "--share", "2"], ("--share 2", "above 0")),
    (["tune", MODEL, "--time", "20"], ("like 20ms or 0.5s",)),
    (["tune", MODEL, "--context", "4k"], ("--context 4096", "give 1 to 2048")),
    (["tune", MODEL, "--quality", "95", "--context", "1k"], ("--quality 95", "0.95")),
    (["tune", MODEL, "--docs", "{at}/nowhere", "--context", "1k"], ("--docs", "folder of text files")),
    (["tune", MODEL, "--candidate", "snapkv(0.1) | ada"], ("one head's cache",)),
    (["tune", MODEL, "--candidate", "snapkw"], ("did you mean 'snapkv'",)),
    (["tune", MODEL, "--documents", "0"], ("--documents 0", "give 1 or more")),
    (["tune", MODEL, "--out", "{at}/no/my.plan"], ("--out", "make it first")),
    (["bench", MODEL, "--task", "no_such_task"], ("no_such_task",)),
    (["bench", MODEL, "--share", "0.1,2"], ("--share 2", "above 0")),
    (["bench", MODEL, "--items", "0"], ("--items 0", "give 1 or more")),
    (["bench", MODEL, "--workers", "0"], ("--workers 0", "give 1 or more")),
    (["bench", MODEL, "--plan", "{at}/no.plan"], ("no.plan", "check the path")),
    (["bench", MODEL, "--context", "500,9k"], ("--context 9216", "give 1 to 2048")),
    (["bench", MODEL, "--calibration", "{at}/text.plan"], ("text.plan", "damaged")),
    (["bench", MODEL, "--csv", "{at}/no/a.csv"], ("--csv", "make it first")),
    (["check", "{at}/no.plan", MODEL], ("no.plan", "check the path")),
    (["check", "{at}/other.plan", MODEL], ("2 layers", "has 3")),
    (["check", "{at}/other.plan", MODEL, "--facts", "0"], ("--facts 0", "give 1 or more")),
    (["check", "{at}/other.plan", MODEL, "--context", "4k"], ("--context 4096", "give 1 to 2048")),
    (["calibrate", MODEL], ("--out FILE",)),
    (["calibrate", MODEL, "--out", "{at}/text.plan"], ("text.plan", "damaged")),
    (["calibrate", MODEL, "--out", "{at}/a", "--only", "profil"], ("profile",)),
    (["calibrate", MODEL, "--out", "{at}/a", "--docs", "{at}/nowhere"], ("--docs", ".txt")),
    (["calibrate", MODEL, "--plan", "{at}/a", "--recipe", "duu"], ("did you mean 'duo'",)),
    (["calibrate", MODEL, "--out", "{at}/a", "--recipe", "duo"], ("--recipe duo", "--plan")),
    (["calibrate", MODEL, "--plan", "{at}/a", "--share", "0"], ("--share 0",)),
    (["calibrate", MODEL, "--out", "{at}/a", "--state", "{at}"], ("--state", "leave one out")),
    (["calibrate", MODEL, "--out", "{at}/a", "--context", "1m"], ("--context 1m", "like 8192 or 32k")),
    (["sweep", "{at}/task.toml"], ("no_such_task",)),
    (["sweep", "{at}/task.toml", "--out", "{at}/task.toml"], ("--out", "is a file")),
    (["sweep", "{at}/no.toml"], ("no.toml",)),
    (["explain", "snapkv(0.2)", MODEL, "--context", "lots"], ("--context lots",)),
    (["explain", "{at}/other.plan", MODEL], ("other.plan is for another model",)),
    (["fit", MODEL, "--batch", "0"], ("--batch 0", "give 1 or more")),
    (["fit", MODEL, "--available", "0MiB"], ("--available 0MiB",)),
]


@pytest.fixture(scope="module")
def weightless(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder without its weights: loading it fails, with other words."""
    folder = tmp_path_factory.mktemp("weightless")
    for path in tiny.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda value: "")
def test_it_is_refused_before_a_model_is_loaded(
    headwise: Command,
    weightless: Path,
    tmp_path: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Plan.uniform(Geometry.uniform(4, 2, 16, 16, (None, None), 2048), "int8").save(tmp_path / "other.plan")
    (tmp_path / "text.plan").write_text("no plan")
    (tmp_path / "task.toml").write_text(f'model = "{weightless}"\ntasks = ["no_such_task"]')
    before = sorted(tmp_path.iterdir())
    refused(headwise(*(one.format(model=weightless, at=tmp_path) for one in arguments)), *words)
    assert sorted(tmp_path.iterdir()) == before


def test_the_model_itself_would_fail_later(headwise: Command, weightless: Path) -> None:
    found = headwise("run", weightless)
    assert found.exit_code == 2 and "cannot load a model" in found.stderr


def test_a_plan_is_explained_for_its_own_model(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    seam = attach(load_model(tiny))
    Plan.uniform(seam.geometry, "int8", seam.fingerprint).save(tmp_path / "own.plan")
    told = headwise("explain", tmp_path / "own.plan", tiny, "--context", 500).stdout
    assert "3 layers of 2 KV heads, float32" in told
