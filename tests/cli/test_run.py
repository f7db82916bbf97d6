"""`headwise run`: the main job and a user's own text, its JSON, its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwise.bench import tuning
from headwise.bench.arms import CONTROL
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from headwise.tune import menu, tuner
from tests.cli.conftest import Command
from tests.tiny import CONTEXT

ROW_FIELDS = {
    "recipe", "prefill_s", "decode_tokens_per_s", "cache_bytes", "predicted_bytes", "dense_bytes", "answers_right",
    "answers_total", "perplexity", "kept_share", "peak_bytes", "lost_mass", "kept", "answers", "remarks",
    "moved_per_token",
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The main job's JSON object, and its page."""
    from typer.testing import CliRunner

    from headwise.cli.main import app

    page = tmp_path_factory.mktemp("page") / "run.html"
    command = ["run", str(tiny), "--recipe", "l2norm(0.3, skip_layers=1)", "--chunk", "300", "--facts", "4"]
    result = CliRunner().invoke(app, [*command, "--json", "--report", str(page), "--max-new-tokens", "6"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), page


def test_the_main_job_says_what_a_reader_needs(job: tuple[dict, Path]) -> None:
    result, _ = job
    assert set(result) >= {"model", "prompt_tokens", "rows", "versions", "seed", "machine", "template"}
    assert CONTEXT - 400 < result["prompt_tokens"] < CONTEXT
    assert [row["role"] for row in result["rows"]] == ["dense", "plan", "baseline", "baseline", "control"]
    for row in result["rows"]:
        assert set(row) >= ROW_FIELDS
        assert row["answers_total"] == 4 == len(row["answers"])
        assert 0 <= row["answers_right"] <= 4
        assert row["perplexity"] > 1
        assert [answer["depth"] for answer in row["answers"]] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_bytes_and_counts_are_real_and_as_predicted(job: tuple[dict, Path]) -> None:
    rows = {row["recipe"]: row for row in job[0]["rows"]}
    dense, plan = rows["dense"], rows["l2norm(0.3, skip_layers=1)"]
    assert all(row["cache_bytes"] <= 1.1 * row["predicted_bytes"] for row in rows.values())
    assert dense["kept_share"] == 1
    assert dense["cache_bytes"] >= dense["dense_bytes"]
    seen = job[0]["prompt_tokens"]
    assert plan["kept"] == [[seen] * 2, [round(0.3 * seen)] * 2, [round(0.3 * seen)] * 2]
    assert plan["cache_bytes"] < plan["peak_bytes"] < dense["peak_bytes"]
    assert plan["lost_mass"][0] == [0, 0]
    assert all(0 < share < 1 for row in plan["lost_mass"][1:] for share in row)


def test_baselines_have_the_bytes_of_the_plan(job: tuple[dict, Path]) -> None:
    rows = job[0]["rows"]
    plan = next(row for row in rows if row["role"] == "plan")
    baselines = [row for row in rows if row["role"] == "baseline"]
    assert {row["recipe"].partition("(")[0] for row in baselines} == {"random", "streaming"}
    page = 16 * plan["dense_bytes"] / job[0]["prompt_tokens"]
    assert all(abs(row["cache_bytes"] - plan["cache_bytes"]) <= 0.6 * page for row in baselines)


def test_the_control_equals_dense(job: tuple[dict, Path]) -> None:
    dense, control = job[0]["rows"][0], job[0]["rows"][-1]
    assert control["recipe"] == CONTROL
    for field in ("answers", "continued", "perplexity", "cache_bytes"):
        assert control[field] == dense[field]


def test_the_page_stands_alone(job: tuple[dict, Path]) -> None:
    text = job[1].read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("data:image/png;base64,") == 2 * 3  # kept and lost, of every row that evicts
    for outside in ("http://", "https://", "<script", "<link", "url("):
        assert outside not in text


def test_a_default_plan_keeps_to_its_budget(tiny: Path, headwise: Command) -> None:
    result = headwise("run", tiny, "--share", "0.5", "--no-compare", "--json", "--facts", "2", "--max-new-tokens", "2")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["recipe"].startswith("expected_attention(")
    assert 0.4 * row["dense_bytes"] < row["cache_bytes"] <= 0.5 * row["dense_bytes"]


def test_a_recipe_may_name_bytes(tiny: Path, headwise: Command) -> None:
    recipe = "snapkv(200KiB) | int8"
    shown = ("--no-compare", "--json", "--facts", "2", "--max-new-tokens", "2")
    (row,) = json.loads(headwise("run", tiny, "--recipe", recipe, *shown).stdout)["rows"]
    assert row["recipe"] == recipe
    assert row["remarks"][0].startswith(f"'{recipe}' keeps ")
    assert 0.9 * 200 * 1024 <= row["cache_bytes"] <= row["predicted_bytes"] <= 200 * 1024


def test_a_text_of_ones_own(tiny: Path, headwise: Command, tmp_path: Path) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("The bridge was built by nobody in particular. It still stands. " * 20)
    seam = attach(load_model(tiny))
    heads = (Recipe.parse("keydiff(64)"), Recipe.parse("keydiff(64) | int8"))
    Plan(seam.geometry, (heads, heads, heads[:1] * 2), seam.fingerprint).save(tmp_path / "mine.plan")
    command = ("run", tiny, "--prompt-file", text, "--ask", "Who built it?", "--ask", "Does it stand?")
    command += (
        "--recipe",
        "snapkv | int8",
        "--memory",
        "60KiB",
        "--plan",
        tmp_path / "mine.plan",
        "--max-new-tokens",
        "5",
    )
    result = json.loads(headwise(*command, "--json").stdout)
    assert [row["role"] for row in result["rows"]] == ["dense", "plan", "plan"]
    assert [row["recipe"] for row in result["rows"]][2] == "mine"
    for row in result["rows"]:
        assert [answer["ask"] for answer in row["answers"]] == ["Who built it?", "Does it stand?"]
        assert row["answers_total"] is None
        assert row["perplexity"] is None
    assert result["rows"][2]["recipes"] == {"keydiff(64)": 4, "keydiff(64) | int8": 2}
    assert result["rows"][2]["kept"] == [[64, 64]] * 3
    assert result["rows"][2]["cache_bytes"] == result["rows"][2]["predicted_bytes"]
    assert 50 * 1024 < result["rows"][1]["cache_bytes"] <= 60 * 1024
    shown = headwise(*command, "--no-compare")
    assert shown.exit_code == 0
    assert "Does it stand?" in shown.stdout
    assert "dense:" not in shown.stdout


def test_a_cache_in_a_file_answers_the_same(tiny: Path, headwise: Command, tmp_path: Path) -> None:
    command = ("run", tiny, "--recipe", "exact_topk(64)", "--facts", "2", "--max-new-tokens", "6", "--dtype", "float32")
    near, far = (
        json.loads(headwise(*command, *more, "--json").stdout)
        for more in ((), ("--resident", "96KiB", "--folder", tmp_path))
    )
    assert [row["answers"] for row in far["rows"]] == [row["answers"] for row in near["rows"]]
    assert [row["continued"] for row in far["rows"]] == [row["continued"] for row in near["rows"]]
    assert all(far["rows"][row]["cache_bytes"] < near["rows"][row]["cache_bytes"] / 2 for row in (0, 1))
    moved = {row["recipe"]: row["moved_per_token"] for row in far["rows"]}
    assert 0 < moved["exact_topk(64)"] < moved["dense"] and not any(row["moved_per_token"] for row in near["rows"])
    assert "at each new token: dense" in headwise(*command, "--resident", "96KiB", "--no-compare").stdout.replace(
        "exact_topk(64) ", "dense "
    )


def test_without_a_question_the_text_goes_on(tiny: Path, headwise: Command, tmp_path: Path) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Once upon a time there was a house.")
    result = json.loads(headwise("run", tiny, "--prompt-file", text, "--max-new-tokens", "4", "--json").stdout)
    assert result["template"] == "continued"
    assert all(len(row["answers"]) == 1 for row in result["rows"])


def test_a_limit_in_bytes_is_tuned_for_once(
    tiny: Path, headwise: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(menu, "default_menu", lambda: [Recipe(), Recipe.parse("streaming(0.1) | int8")])
    monkeypatch.setattr(tuner, "rivals", list)
    monkeypatch.setattr(tuning, "DEFAULT_TASKS", tuning.DEFAULT_TASKS[:1])
    command = ("run", tiny, "--memory", "300KiB", "--no-compare", "--json", "--facts", "2", "--max-new-tokens", "2")
    first = headwise(*command)
    assert first.exit_code == 0, first.output
    assert "no ready plan fits" in first.stderr
    (row,) = json.loads(first.stdout)["rows"]
    assert set(row["recipes"]) <= {"dense", "streaming(0.1) | int8", *menu.CODECS}
    assert row["cache_bytes"] <= 300 * 1024
    again = headwise(*command)
    assert "no ready plan fits" not in again.stderr
    assert json.loads(again.stdout)["rows"][0]["plan_digest"] == row["plan_digest"]
    whole = headwise(*(command[:3]), "1GiB", *command[4:])
    assert "no ready plan fits" not in whole.stderr, "dense attention fits"
