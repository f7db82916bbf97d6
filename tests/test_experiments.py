"""How parts are judged, and what the command and the list of systems make of experiments."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from headwise import systems
from headwise.errors import RecipeError
from headwise.experiments import Part, experiment, interval, shown_runs
from tests.cli.conftest import Command, headwise  # noqa: F401


def judged(found: list[float], control: list[float], **limit: float) -> str:
    part = Part("it is", "of", "control", "another", **limit)
    return str(
        part.judged([{"measures": {"of": a, "control": b}} for a, b in zip(found, control, strict=True)])["state"]
    )


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)
    assert found == {"mean": 2.0, "low": pytest.approx(2 - half, abs=1e-4), "high": pytest.approx(2 + half, abs=1e-4)}


def test_a_part_is_shown_only_where_the_control_fails() -> None:
    low, high, wide = [0.1, 0.11, 0.12], [0.9, 0.91, 0.92], [0.1, 0.5, 0.9]
    assert judged(low, high, below=0.5) == "shown" == judged(high, low, above=0.5)
    assert judged(low, low, below=0.5) == "open", "the control passes too"
    assert judged(wide, high, below=0.5) == "open", "the interval contains the limit"
    assert judged(high, high, below=0.5) == "negative" == judged(low, low, above=0.5)
    assert judged([math.nan] * 3, high, below=0.5) == "open"


def test_what_holds_by_how_a_thing_is_built_shows_nothing_alone() -> None:
    made = experiment("reweaving")
    assert set(made.built) == {"off"} < {part.of for part in made.parts}

    def state(*gains: float) -> str:
        draws = [{"measures": {"off": 0.0, "on": 1.0, "gain": one, "gain_other": 0.0}} for one in gains]
        return str(made.check({"experiment": made.name, "draws": draws})["state"])

    assert state(0.5, 0.5, 0.5) == "shown"
    assert state(0.0, 0.1, 0.2) == "open", "what is learnt is open, and only that a gain of 0 changes nothing is shown"
    assert state(0.0, 0.0, 0.0) == "negative"


def test_a_sentence_is_an_experiment_and_back() -> None:
    made = experiment("passes(tiles=4, seeds=3)")
    assert str(made) == "passes(seeds=3, tiles=4)" or experiment(str(made)) == made
    assert str(experiment("passes")) == "passes"
    for wrong, told in (("pases", "did you mean 'passes'"), ("passes(tile_count=2)", "no parameter"),
                        ("passes(tiles=1)", "greater than or equal to 2, got 1"),
                        ("head_size(narrow=32)", "narrow = 32 is not below"),
                        ("nearest_neighbour(dim=15)", "no multiple of heads")):  # fmt: skip
        with pytest.raises(RecipeError, match=told):
            experiment(wrong)


def test_the_command_lists_runs_and_draws(headwise: Command, tmp_path: Path) -> None:  # noqa: F811
    assert "passes" in headwise("theory").stdout
    listed = json.loads(headwise("theory", "--json").stdout)
    assert {"name", "state", "statement", "paper"} <= set(listed[0])
    picture, out = tmp_path / "passes.png", tmp_path / "runs.json"
    found = headwise("theory", "passes(seeds=3)", "--picture", picture, "--out", out, "--state", tmp_path / "state")
    assert found.exit_code == 0 and "passes: shown" in found.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    run = json.loads(out.read_text())["runs"][0]
    assert run["verdict"]["state"] == "shown" and len(run["draws"]) == 3
    again = headwise("theory", "passes(seeds=3)", "--json", "--state", tmp_path / "state")
    assert "3 finished taken over" in again.stderr
    assert json.loads(again.stdout)["runs"][0]["draws"] == run["draws"]


def test_the_command_refuses_before_it_runs(headwise: Command) -> None:  # noqa: F811
    refused = {
        ("nowhere",): "no experiment is called 'nowhere'",
        ("passes", "--all"): "leave one of them out",
        ("--picture", "a.png"): "--picture draws one experiment, and 0 are named",
    }
    for words, told in refused.items():
        found = headwise("theory", *words)
        assert found.exit_code == 2 and told in " ".join(found.stderr.split())


def test_rows_say_what_their_experiments_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    row = systems.system("106")
    assert "theory passes" in row.here
    monkeypatch.setattr(systems, "tried", lambda: {106: [("passes", "negative")]})
    assert row.state == "negative"


def test_a_file_keeps_the_runs_of_other_experiments(headwise: Command, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "runs.json"
    for name in ("power_reach(tokens=128, layers=4, seeds=3)", "passes(seeds=3)", "power_reach(tokens=64, seeds=3)"):
        assert headwise("theory", name, "--out", str(out), "--fresh").exit_code == 0
    runs = {run["experiment"]: run for run in json.loads(out.read_text())["runs"]}
    assert list(runs) == ["passes", "power_reach"]
    assert runs["power_reach"]["sentence"] == "power_reach(seeds=3, tokens=64)"
    assert "machine" in runs["passes"] and "machine" not in runs["power_reach"]


def test_what_ships_is_what_checks_say_of_the_draws() -> None:
    """A limit that was changed, and a run that was not judged again, would be told as what it was before."""
    shipped = shown_runs()
    assert shipped is not None
    for run in shipped.runs:
        made = experiment(run.sentence)
        verdict = made.check({"experiment": run.experiment, "draws": run.draws})
        assert json.loads(json.dumps(verdict)) == run.verdict, run.experiment
