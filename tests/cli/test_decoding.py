"""`headwise diffuse` and `headwise compare-decoding`: what they print, keep and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headwise.bench import decoding
from headwise.bench.diffusion import FIXED, NEVER, STEPWISE, score, ways
from headwise.bench.ways import WAYS
from headwise.models.diffusion_texts import TEXTS, texts
from headwise.report.decoding import figures as decoding_figures
from headwise.report.diffusion import figures as diffusion_figures
from tests.cli.conftest import Command


def test_diffuse_trains_once_and_keeps_what_is_finished(
    headwise: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = ("--text", "sums", "--questions", "2", "--steps", "4", "--state", tmp_path / "state")
    told = headwise("diffuse", *given, "--out", tmp_path / "all.json", "--picture", tmp_path / "all.png")
    assert told.exit_code == 0 and "training a diffusion model on sums" in told.stderr, told.stderr
    assert "self-speculation, 2 drafts" in told.stdout and (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    again = headwise("diffuse", *given, "--json")
    assert "training" not in again.stderr
    result = json.loads(again.stdout)
    (one,) = result["texts"]
    rows = {row["name"]: row for row in one["ways"]}
    plain = rows[STEPWISE]
    assert rows["self-speculation, 4 drafts"]["same"] == [1, 1] == rows["self-speculation, 1 drafts"]["same"]
    assert rows["self-speculation, 1 drafts"]["looks"] == plain["looks"]
    assert diffusion_figures(result)["rows"][0][1] == STEPWISE
    some = headwise("diffuse", *given, "--way", NEVER, "--json")
    ways_asked = json.loads(some.stdout)["texts"][0]["ways"]
    assert [(row["name"], row["beside"]) for row in ways_asked] == [(FIXED, None), (NEVER, FIXED)]


def test_a_sum_is_right_where_all_lines_are() -> None:
    one = texts("sums").example(1)
    assert score(texts("sums"), one, "5-3=2\n2+5=7\n7-5=2\n2+5=7\n") == 1
    assert score(texts("sums"), one, "5-3=2\n2+5=7\n7-5=2\n2+5=8\n") == 0
    assert score(texts("novel"), one, "x the martians zzqq were y") == pytest.approx(0.75)
    assert set(TEXTS) == {"sums", "novel"} and ways(40)[0].name == STEPWISE


def test_compare_decoding_tells_of_every_way(
    headwise: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BEHIND", 4)
    monkeypatch.setattr(decoding, "ANSWER", 3)
    monkeypatch.setattr(decoding, "BEFORE", 12)
    given = ("--questions", "1", "--state", tmp_path / "state", "--out", tmp_path / "all.json")
    told = headwise("compare-decoding", tiny, *given, "--picture", tmp_path / "all.png")
    assert told.exit_code == 0, told.stderr
    result = json.loads((tmp_path / "all.json").read_text())
    assert [row["name"] for row in result["ways"]] == [way.name for way in WAYS]
    assert "most answers right by" in told.stdout and (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    assert len(decoding_figures([result])["rows"]) == len(WAYS) + 1


def row(name: str, draws: bool, right: list[float], surprise: list[float], diversity: list[float]) -> dict[str, Any]:
    gaps = {"surprise": surprise, "diversity": diversity}
    return {"name": name, "draws": draws, "right": right, "closed": {"mean": sum(right) / len(right)}, "gaps": gaps}


def test_the_verdict_names_the_best_of_each_task() -> None:
    rows = [
        row("sure", False, [1, 1, 1, 0], [2.0] * 4, [0.8] * 4),
        row("drawn", True, [1, 0, 0, 0], [0.2] * 4, [0.1] * 4),
    ]
    found = decoding.verdict(rows)
    assert (found["best_closed"], found["best_open"]) == ("sure", "drawn")
    assert found["deterministic_over_drawn"]["mean"] == 0.5
    assert found["open_gap_of_closed_best_over_open_best"]["mean"] == pytest.approx(1.8)
    other = decoding.verdict([row("a", False, [1, 0], [1.0] * 2, [0.1] * 2), row("b", True, [0, 1], *[[0.1] * 2] * 2)])
    assert other["closed_best_over_open_best"]["mean"] == -0.5, "each half is judged by what the other one chose"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("diffuse", "--text", "sum"), "did you mean 'sums'"),
        (("diffuse", "--questions", "0"), "questions"),
        (("diffuse", "--way", "all above 0.8"), "did you mean 'all above 0.9'"),
        (("diffuse", "--recipe", "snapkw"), "snapkv"),
        (("compare-decoding", "--questions", "0"), "questions"),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[str, ...], why: str, headwise: Command) -> None:
    told = headwise(*given)
    assert told.exit_code == 2 and why in told.stderr
