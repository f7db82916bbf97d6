"""Files that a comparison reads: task files, sweeps, results and finished cells, each checked field by field."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headwise.bench.cells.pool import CellFacts
from headwise.bench.cells.sweep import Sweep
from headwise.bench.judging.compare import compared, load_result
from headwise.bench.protocol import FORMAT, HASHED
from headwise.errors import HeadwiseError
from headwise.kept import kept
from headwise.tasks.on_disk import form_of, read_lines

NEEDLE = {"context": "Some text.", "question": "What?", "answer": "owl"}


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_a_line_ends_with_a_line_feed_alone(character: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = NEEDLE | {"context": f"One{character}two."}
    raw = json.dumps(row, ensure_ascii=character < " ")  # control characters must be escaped in JSON
    path.write_text(f"{raw}\n{raw}\n", encoding="utf-8", newline="")
    assert [line.document for line in read_lines(str(path))] == [f"One{character}two."] * 2


@pytest.mark.parametrize("begin", ["\n", "  \n\n", "\ufeff", "\r\n"])
def test_a_file_may_begin_with_blank_lines_or_a_mark(begin: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((begin + json.dumps(NEEDLE) + "\r\n\r\n" + json.dumps(NEEDLE)).encode())
    assert form_of(str(path)) == "needle"
    assert len(read_lines(str(path))) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "input": "b", "answers": [1]}, "answers"),
        ({"context": 3, "question": "b", "answer": "c"}, "context = 3 should be a text"),
        ({"context": "a", "question": None, "answer": "c"}, "question = None should be a text"),
        ({"input": ["a"], "outputs": ["b"]}, "input = .* should be a text"),
        ({"input": "a", "outputs": "b"}, "outputs = 'b' should be a list"),
        ([1], "should be an object"),
        ("text", "should be an object"),
        (None, "should be an object"),
    ],
)
def test_a_field_of_another_kind_is_named_with_its_line(row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n" + json.dumps(row) + "\n")
    with pytest.raises(HeadwiseError, match=message) as caught:
        read_lines(str(path))
    assert f"{path}, line 3: " in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(HeadwiseError, match=r"a\.jsonl is no UTF-8 text"):
        read_lines(str(path))


def test_a_sweep_file_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bait.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "sweep.toml"
    path.write_text('tasks = ["bait:Task(size=2)"]')
    with pytest.raises(HeadwiseError, match=r"would import the module 'bait'.*--module bait"):
        Sweep.load(path)
    with pytest.raises(HeadwiseError, match="bait"):
        Sweep.load(path, ["other"])
    assert Sweep.load(path, ["bait"]).tasks == ("bait:Task(size=2)",)
    assert "bait" not in sys.modules and not (tmp_path / "sprung").exists()


def result(**changed: Any) -> dict[str, Any]:
    task = {"samples": [{"item": 0, "ask": one, "score": 1} for one in range(3)]}
    row = {"name": "a", "tasks": {"t 1": task}, "overall": {"mean": 1.0}, "byte_steps_of_dense": 0.3} | changed
    return {"protocol": {"format": FORMAT, "hashes": dict.fromkeys(HASHED, "0")}, "rows": [row]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "rows.0.name = 3 should be a text"),
        ({"overall": None}, "no overall score"),
        ({"tasks": {"t 1": {"samples": [{"item": 0, "ask": 0}]}}}, "samples.0.score' is missing"),
        ({"byte_steps_of_dense": float("nan")}, "rows.0.byte_steps_of_dense = nan"),
    ],
)
def test_a_changed_result_is_refused_by_its_field(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()))
    assert compared(load_result(path), load_result(path))["rows"][0]["first"] == 1.0
    path.write_text(json.dumps(result(**changed)))
    with pytest.raises(HeadwiseError, match=message) as caught:
        load_result(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"cell": 3}', '{"cell": {}, "samples": {}}'])
def test_a_damaged_cell_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(HeadwiseError, match=r"key\.json: .*delete it to have it made again"):
        kept(tmp_path, "key", CellFacts)
