"""`headwise train-drafter` on the tiny model: what it prints, writes, refuses, and that `run` drafts with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

SHORT = ("--steps", "2", "--depth", "2", "--window", "64")


@pytest.mark.parametrize("kind", ["medusa", "clover"])
def test_heads_are_trained_and_drafted_with(kind: str, headwise: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The tide came in, the tide went out. " * 60, encoding="utf-8")
    out = tmp_path / "heads"
    given = ("--kind", kind, "--out", out, "--docs", tmp_path / "docs", "--state", tmp_path / "state")
    found = headwise("train-drafter", tiny, *given, *SHORT, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["kind"] == kind and len(told["hits"]) == 2 and out.is_file()
    (tmp_path / "a.txt").write_text("The tide came in, the tide went out. " * 8, encoding="utf-8")
    asked = ("--prompt-file", tmp_path / "a.txt", "--ask", "What did the tide do?", "--max-new-tokens", "12", "--json")
    asked = (*asked, "--no-compare", "--recipe", "int8")
    plain, drafted = (headwise("run", tiny, *asked, *more) for more in ((), ("--draft", f"{kind}('{out}')")))
    assert drafted.exit_code == 0, drafted.output
    texts = [[row["answers"][0]["got"] for row in json.loads(one.stdout)["rows"]] for one in (plain, drafted)]
    assert texts[0] == texts[1]


def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    no_model: None, headwise: Command, tiny: Path, tmp_path: Path
) -> None:
    for given, told in (
        (("--kind", "meduza"), "no kind of drafting heads is called 'meduza'"),
        (("--steps", "0"), "--steps"),
        (("--depth", "9", "--window", "10"), "--window"),
        (("--out", tmp_path), "is a folder"),
        (("--docs", tmp_path), "no .txt or .md file"),
    ):
        found = headwise("train-drafter", tiny, "--out", tmp_path / "heads", *given)
        assert found.exit_code == 2 and told in found.output, found.output


def test_heads_that_read_an_encoder_are_refused_where_there_is_none(
    headwise: Command, tiny: Path, tmp_path: Path
) -> None:
    given = ("--kind", "medusa_block", "--out", tmp_path / "heads", "--state", tmp_path / "state")
    found = headwise("train-drafter", tiny, *given, *SHORT)
    assert found.exit_code != 0 and "LlamaForCausalLM has none; train 'medusa' heads" in " ".join(found.output.split())
