"""`headwise faithful` and `headwise run --decode` on the embedded model: what they print, keep and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwise.bench.faithful.questions import DOCUMENTS, KINDS, Asked
from tests.cli.conftest import Command

HEADS = "decore(named='1.0 2.1')"


def test_arms_are_judged_and_taken_over(headwise: Command, tmp_path: Path) -> None:
    given = ("--questions", "2", "--decode", "dola", "--decode", "cad", "--state", tmp_path / "state", "--json")
    found = headwise("faithful", *given, "--out", tmp_path / "all.json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told == json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in told["arms"]] == ["greedy", "dola", "cad", "cad, random span [cad]"]
    greedy, dola, cad, _ = told["arms"]
    assert greedy["cost"]["passes"] == dola["cost"]["passes"] == 0 < cad["cost"]["prompts"]
    assert greedy["over_greedy"]["conflict"]["mean"] == 0 and cad["over_control"] is not None
    again = headwise("faithful", *given)
    assert json.loads(again.stdout)["arms"] == told["arms"]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_made_alike_and_judged(kind: str) -> None:
    asked = KINDS[kind](0, 2 * DOCUMENTS)
    assert asked == KINDS[kind](0, 2 * DOCUMENTS) and len({one.passage for one in asked}) == 2 * DOCUMENTS
    for one in asked:
        assert one.told in one.passage and one.right(f" {one.told}." if one.told else " unknown.")
        assert not one.right(" none") and (not one.known or one.said(one.known) == "known" != one.known)


def test_what_is_said_first_counts() -> None:
    one = Asked("conflict", "The capital of France is Rome.", "", "", "Rome", "Paris")
    said = {
        "It is Rome, not Paris": "told",
        "Paris, not Rome": "known",
        "unknown": "abstained",
        "": "other",
    }
    assert {text: one.said(text) for text in said} == said
    assert one.said("Romeo") == "other" and one.settled("Rome.") and not one.settled("Rome")


def test_run_decodes(headwise: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The tide came in, the tide went out. " * 8, encoding="utf-8")
    asked = ("--prompt-file", tmp_path / "a.txt", "--ask", "What did it do?", "--max-new-tokens", "4", "--json")
    texts = {}
    for decode in ("decore(alpha=0.0, named='1.0')", "dola(alpha=3.0, plausible=0.0001)", None):
        more = () if decode is None else ("--decode", decode)
        found = headwise("run", *asked, "--no-compare", "--recipe", "int8", *more)
        assert found.exit_code == 0, found.output
        texts[decode] = json.loads(found.stdout)["rows"][0]["answers"][0]["got"]
    neutral, strong, plain = texts.values()
    assert neutral == plain != strong


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("faithful", "--decode", "decor"), "did you mean 'decore'"),
        (("faithful", "--questions", "0"), "questions"),
        (("run", "--decode", "cad(alpha=-1.0)"), "alpha must be greater than or equal to 0"),
        (("run", "--decode", "cad", "--draft", "lookup"), "leave one of them out"),
        (("run", "--decode", "cad", "--recipe", "quest(64)"), "leave the select part out"),
    ],
)
def test_what_cannot_be_meant_is_refused(no_model: None, headwise: Command, given: tuple[str, ...], told: str) -> None:
    found = headwise(*given)
    assert found.exit_code == 2 and told in " ".join(found.output.split())
