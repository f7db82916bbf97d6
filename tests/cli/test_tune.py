"""`headwise tune`, from a folder of texts to a plan file with its account."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwise.assets import novel
from headwise.plan import Plan
from headwise.tune import tuner

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs")
    (place / "letters.txt").write_text(novel()[100_000:130_000])
    return place


def options(folder: Path, tmp_path: Path) -> tuple[object, ...]:
    return (
        "--docs", folder, "--context", "1k", "--train-context", 900, "--share", 0.3, "--candidate", "dense",
        "--candidate", "streaming(0.1) | int8", "--candidate", "int4", "--state", tmp_path / "state",
    )  # fmt: skip


def test_a_budget_becomes_a_plan_with_its_proof(
    tiny: Path, headwise: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "rivals", lambda: ["streaming", "snapkv | ada"])
    out, page = tmp_path / "mine.plan", tmp_path / "mine.html"
    run = headwise("tune", tiny, "--out", out, "--report", page, "--json", *options(folder, tmp_path))
    assert run.exit_code == 0, run.output
    result, plan = json.loads(run.stdout), Plan.read(out)
    assert result["chosen"]["plan"] == plan.digest
    assert result["chosen"]["held"] <= result["budget"] == int(0.3 * result["dense_bytes"])
    assert plan.quality["tune"]["front"] == result["front"]
    assert plan.quality["check"] == result["check"]
    assert plan.quality["source"]["data"] == result["data"]
    assert "--share 0.3" in plan.quality["source"]["command"]
    assert "head_losses" in plan.calibration
    text = page.read_text()
    assert text.count("<img") >= 2 and "http" not in text.replace("http-equiv", "")
    assert all(one["name"].split("(")[0] in text for one in result["trials"])

    drafting = ("--draft", "auto", "--draft", "streaming(64)", "--draft", "lookup")
    again = headwise(
        "tune", tiny, "--out", tmp_path / "other.plan", "--no-check", *drafting, *options(folder, tmp_path)
    )
    told = again.stdout
    assert told.count("lookup(drafts=4)") and told.count("   streaming(64)") == 1 and told.count("   lookup\n") == 1
    assert "pays: give --draft" in told or "no drafter is surely quicker" in told
    assert Plan.read(tmp_path / "other.plan").digest == plan.digest, "the same seed finds the same plan"
    assert "> " in again.stdout and "never checked" in again.stdout


def test_time_on_this_machine_becomes_bytes(
    tiny: Path, headwise: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "rivals", lambda: ["streaming"])
    how = (*options(folder, tmp_path), "--no-check", "--out", tmp_path / "mine.plan")
    run = headwise("tune", tiny, *how, "--time", "10s")
    assert run.exit_code == 0, run.output
    told = " ".join(run.stdout.split())
    assert "ms after 1024 tokens, 10000 were allowed" in told and "finds this plan again" in told
    refused = headwise("tune", tiny, *how, "--time", "0.0001ms")
    assert refused.exit_code == 2 and "more than --time 0.0001ms; give" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--memory", "1MiB", "--share", "0.1"), "give one of them"),
        (("--share", "2"), "above 0"),
        (("--time", "20"), "like 20ms or 0.5s"),
        (("--context", "many"), "like 8192 or 32k"),
        (("--docs", "/nowhere"), "folder of text files"),
        (("--candidate", "snapkv(0.1) | ada"), "one head's cache"),
        (("--report", "/nowhere/page.html"), "make it first"),
        (("--draft", "auto", "--draft", "lokup"), "lokup"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tiny: Path, headwise: Command, folder: Path, tmp_path: Path, wrong: tuple[str, ...], told: str
) -> None:
    plan = tmp_path / "no.plan"
    given = ("--docs", folder, "--train-context", "900", "--state", tmp_path, "--out", plan)
    run = headwise("tune", tiny, *given, *wrong)
    assert run.exit_code == 2 and told in run.stderr
    assert not plan.exists()
