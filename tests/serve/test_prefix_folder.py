"""Kept beginnings survive a restart, for the model that read them alone, and nothing half-written is believed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel
from typer.testing import CliRunner

from headwise.cli.main import app
from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.serve.prefix_folder import PrefixFolder
from headwise.serve.request import Request, Usage
from headwise.serve.rows import Rows
from headwise.serve.scheduler import Scheduler
from tests.serve.alone import alone, prompt
from tests.serve.test_scheduler import GREEDY, LIMITS, run, submit

PIECE = LIMITS.piece


@pytest.fixture
def restarted(model: PreTrainedModel, tokenizer: Any, rows: Rows, tmp_path: Path) -> Callable[..., Scheduler]:
    """A scheduler that begins with what the one before it has left in the folder."""

    def make(prefix_bytes: int = 4 << 20) -> Scheduler:
        limits = replace(LIMITS, prefix_bytes=prefix_bytes)
        return Scheduler(model, tokenizer, limits, rows, prefix_folder=PrefixFolder(tmp_path / "kept", model, PIECE))

    return make


def asked(model: PreTrainedModel, recipe: str, seed: int, more: int = 0) -> Request:
    """A request of four pieces and a few tokens, which begins as others of its seed."""
    seam = attach(model)
    ids = (*prompt(PIECE * 4, seed), *prompt(30 + more, 99 + more))
    return Request(ids, Plan.uniform(seam.geometry, recipe, seam.fingerprint), 6, GREEDY)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("kept/*.prefix"))


def test_a_beginning_is_known_after_a_restart(
    model: PreTrainedModel, restarted: Callable[..., Scheduler], tmp_path: Path
) -> None:
    """And the answer is that of reading all, bit for bit, whatever the codec; a later one begins with less of it."""
    recipes = ("", "int8", "quest(32) | int4")
    first = restarted()
    for seed, recipe in enumerate(recipes):
        submit(first, asked(model, recipe, seed))
    run(first)
    assert len(files(tmp_path)) == 3
    second = restarted()
    assert second.prefixes.nbytes == first.prefixes.nbytes
    for seed, recipe in enumerate(recipes):
        request = asked(model, recipe, seed, more=5)
        _, told = submit(second, request)
        run(second)
        assert isinstance(told.last, Usage) and told.last.cached == 4 * PIECE
        assert told.tokens() == alone(model, recipe, request.ids, 6, PIECE, gather=True).ids
        shorter = replace(request, ids=(*request.ids[: 2 * PIECE], *prompt(40, 7)))
        _, told = submit(second, shorter)
        run(second)
        assert isinstance(told.last, Usage) and told.last.cached == 2 * PIECE
    assert not second.prefixes.misses


def test_the_folder_holds_what_memory_holds(
    model: PreTrainedModel, restarted: Callable[..., Scheduler], tmp_path: Path
) -> None:
    made = restarted()
    for seed in range(4):
        submit(made, asked(model, "int8", seed))
        run(made)
    each = made.prefixes.nbytes // 4
    names = files(tmp_path)
    made.prefixes.shrink(2 * each)
    assert len(files(tmp_path)) == 2 and set(files(tmp_path)) < set(names)
    smaller = restarted(prefix_bytes=each)
    assert len(files(tmp_path)) == 1 and smaller.prefixes.nbytes <= each
    while smaller.prefixes.write_next():
        pass
    assert len(files(tmp_path)) == 1
    assert not restarted(prefix_bytes=each - 1).prefixes._held() and not files(tmp_path), "it is too large"


def test_a_folder_without_bytes_is_refused(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", "--prefix-bytes", "0", "--prefix-folder", str(tmp_path), "--port", "0"])
    assert found.exit_code == 2 and "leave one of them out" in " ".join(found.output.split())


def test_nothing_half_written_or_altered_is_believed(
    model: PreTrainedModel, restarted: Callable[..., Scheduler], tmp_path: Path
) -> None:
    made = restarted()
    for seed in range(4):
        submit(made, asked(model, "", seed))
    run(made)
    kept = tmp_path / "kept"
    cut, altered, other, whole = (kept / name for name in files(tmp_path))
    cut.write_bytes(cut.read_bytes()[:-100])
    raw = bytearray(altered.read_bytes())
    raw[-5] ^= 1
    altered.write_bytes(raw)
    moved = kept / other.name.replace(other.name.split(".")[1], "0" * 32)
    other.rename(moved)
    (kept / f"{whole.name}.draft").write_bytes(b"half")
    assert len(restarted().prefixes._held()) == 1 and files(tmp_path) == [whole.name]
    (kept / f"{whole.name.split('.')[0]}.plan").unlink()
    assert not restarted().prefixes._held() and not files(tmp_path)


def test_a_folder_of_another_model_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    PrefixFolder(folder, model, PIECE)
    PrefixFolder(folder, model, PIECE)
    with pytest.raises(HeadwiseError, match="piece 48, this server has 64; give another --prefix-folder"):
        PrefixFolder(folder, model, 64)
    about = json.loads((folder / "about.json").read_text())
    for name, value in (("model", "0" * 16), ("dtype", "bfloat16")):
        (folder / "about.json").write_text(json.dumps(about | {name: value}))
        with pytest.raises(HeadwiseError, match=f"{name} {value}, this server has {about[name]}"):
            PrefixFolder(folder, model, PIECE)
    (folder / "about.json").write_text("{")
    with pytest.raises(HeadwiseError, match="give another --prefix-folder"):
        PrefixFolder(folder, model, PIECE)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(HeadwiseError, match="holds other files"):
        PrefixFolder(folder, model, PIECE)
    assert (folder / "letter.txt").read_text() == "mine"


def test_copies_of_another_version_are_forgotten(
    model: PreTrainedModel, restarted: Callable[..., Scheduler], tmp_path: Path
) -> None:
    made = restarted()
    submit(made, asked(model, "", 0))
    run(made)
    about = tmp_path / "kept" / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"by": "headwise 0.0.9"}))
    assert not restarted().prefixes._held() and not files(tmp_path)


def test_a_disk_that_is_full_stops_no_answer(
    model: PreTrainedModel, restarted: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    made = restarted()
    monkeypatch.setattr(PrefixFolder, "write", full)
    _, told = submit(made, asked(model, "", 0))
    run(made)
    assert isinstance(told.last, Usage) and not made.prefixes._unwritten
