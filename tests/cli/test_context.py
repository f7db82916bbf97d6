"""`headwise context`: arranging a folder of documents, judging, measuring, and what is refused before a model loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in (("a.txt", "The boat is blue."), ("b.md", "The clock is old."), ("c.txt", "It rained.")):
        (folder / name).write_text(text + "\n")
    return folder


def found(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_arranging_a_folder(headwise: Command, tiny: Path, documents: Path) -> None:
    call = ("context", "arrange", "Is it old?", "--docs", documents, "--model", tiny, "--json")
    told = found(headwise(*call, "--how", "attention_sorting(2)", "--answer"))
    assert sorted(one["name"] for one in told["documents"]) == ["a.txt", "b.md", "c.txt"]
    assert told["passes"] in (1, 2) and told["answer"] is not None
    assert all(one["text"] in told["prompt"] for one in told["documents"])
    given = found(headwise(*call, "--how", "as_given"))
    assert [one["place"] for one in given["documents"]] == [0, 1, 2] and given["answer"] is None


def test_a_json_list_of_texts(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text('["one text", "another"]')
    call = ("context", "arrange", "Which?", "--model", tiny, "--how", "shuffled", "--docs")
    result = headwise(*call, tmp_path / "texts.json")
    assert result.exit_code == 0 and "another" in result.stdout


def test_measuring_and_judging(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    profile, state = tmp_path / "profile", tmp_path / "state"
    result = headwise("context", "measure", tiny, "--profile", profile, "--slots", 3, "--questions", 2)
    assert result.exit_code == 0, result.output
    call = ("context", "judge", tiny, "--questions", 2, "--documents", 3, "--how", f"attn_rank({str(profile)!r})")
    rows = found(headwise(*call, "--state", state, "--json"))["rows"]
    assert [one["questions"] for one in rows] == [2, 2] and list(state.iterdir())
    assert "more than as given" in headwise(*call, "--state", state).stdout
    assert "attention_sorting" in found(headwise("context", "arrangers", "--json"))


@pytest.mark.usefixtures("no_model")
def test_what_is_wrong_is_told_before_a_model_is_loaded(headwise: Command, documents: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text('{"a": 1}')
    arrange = ("context", "arrange", "Which?", "--docs")
    for words, told in (
        ((*arrange, documents, "--how", "attention_sort"), "attention_sorting"),
        ((*arrange, tmp_path / "empty"), "holds no .txt or .md"),
        ((*arrange, tmp_path / "list.json"), "no list of texts"),
        ((*arrange, tmp_path / "none"), "none"),
        (("context", "judge", "--how", "bm26"), "bm25"),
        (("context", "judge", "--documents", "1"), "--documents 1"),
        (("context", "judge", "--squad", tmp_path / "none"), "no file"),
        (("context", "measure"), "--profile FILE"),
    ):
        result = headwise(*words)
        assert result.exit_code and told in result.output, result.output
