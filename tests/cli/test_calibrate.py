"""`headwise calibrate`: a calibration file that is gone on with, and plans made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwise.calibrate.calibration import Calibration
from headwise.cli.commands.calibrate import _material
from headwise.plan import Plan
from tests.cli.conftest import Command

QUICK = ("--context", "800", "--documents", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for i in range(2):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"The {i} sheep went over the hill and back again. " * 80)
    return tmp_path / "texts"


def test_a_calibration_grows_and_becomes_a_plan(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "calibration", tmp_path / "plan"
    told = json.loads(headwise("calibrate", tiny, "--out", out, "--only", "profile,keys", *QUICK, "--json").stdout)
    assert list(told["figures"]) == ["keys", "profile"]  # what costs least first
    assert told["tensors"]["sink_mass"] == [3, 2] and told["files"] == [str(out)]
    result = headwise(
        "calibrate", tiny, "--out", out, "--only", "induction", "--plan", plan, "--recipe", "razor(0.2) | int8", *QUICK
    )
    assert result.exit_code == 0, result.output
    assert "razor.induction [3, 2, 2]" in result.stdout and "kept whole (layer, head)" in result.stdout
    assert set(Calibration.load(out).figures) == {"profile", "keys", "induction"}
    assert set(Plan.read(plan).calibration) >= {"razor.echo", "razor.induction", "loki.basis"}
    ran = headwise("run", tiny, "--plan", plan, "--facts", "2", "--json")
    assert ran.exit_code == 0, ran.output
    row = json.loads(ran.stdout)["rows"][1]
    assert 0.2 < row["kept_share"] < 1


def test_patterns_learn_from_the_model(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    """The command of docs/compute_less.md: thresholds and gates in one plan."""
    out, plan = tmp_path / "calibration", tmp_path / "plan"
    result = headwise(
        "calibrate", tiny, "--out", out, "--only", "seer,sale", "--plan", plan, "--recipe", "sale", *QUICK
    )
    assert result.exit_code == 0, result.output
    assert "sale.threshold [3, 2]" in result.stdout
    calibration = Calibration.load(out)
    assert set(calibration.figures) == {"seer", "sale"} and calibration.figures["seer"] == {"steps": 200}
    assert set(Plan.read(plan).calibration) == {"seer.query", "seer.key", "sale.threshold"}
    ran = headwise("run", tiny, "--plan", plan, "--facts", "2", "--json")
    assert ran.exit_code == 0, ran.output


def test_a_plan_alone_measures_what_it_needs(headwise: Command, tiny: Path, tmp_path: Path) -> None:
    result = headwise("calibrate", tiny, "--plan", tmp_path / "plan", "--share", "0.5", *QUICK)
    assert result.exit_code == 0, result.output
    assert "kept whole (layer, head)" in result.stdout and "head_losses [3, 2]" in result.stdout
    assert "duo.gates" not in result.stdout
    assert set(Plan.read(tmp_path / "plan").calibration) == {"head_losses"}


def test_texts_of_a_folder_are_read(headwise: Command, tiny: Path, tmp_path: Path, folder: Path) -> None:
    for out, more in ((tmp_path / "one", ()), (tmp_path / "two", ("--docs", folder))):
        assert headwise("calibrate", tiny, "--out", out, "--only", "profile", *more, *QUICK).exit_code == 0
    one, two = (Calibration.load(tmp_path / name) for name in ("one", "two"))
    assert one.data != two.data
    assert two.tensors["queries_by_length"].sum() == 1600


def test_bad_options_are_refused(headwise: Command, tiny: Path, tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    for options, message in (
        ((), "--out FILE"),
        (("--out", out, "--only", "profil", *QUICK), "profile"),
        (("--out", out, "--docs", empty, *QUICK), ".txt"),
        (("--out", out, "--only", "keys", "--plan", tmp_path / "plan", *QUICK), "ablation"),
    ):
        result = headwise("calibrate", tiny, *options)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert headwise("calibrate", tiny, "--out", out, "--only", "profile", *QUICK).exit_code == 0
    assert headwise("calibrate", tiny, "--out", out, "--only", "profile", "--docs", folder, *QUICK).exit_code == 2


def test_gradients_pass_through_documents_of_bounded_length(tiny: Path) -> None:
    """So that no measure's memory grows faster with the context than keys and values do."""
    given = _material(str(tiny), None, 1, (1500, 1000), 0)
    assert all(1200 < one.ids.shape[1] <= 1500 for one in given.recalls)
    lengths = [one.ids.shape[1] for one in given.trained]
    assert lengths == sorted(lengths) and len(lengths) == 3 and 800 < lengths[-1] <= 1000
    assert all(one.ids.shape[1] <= 1000 for one in given.ladder)
    short = _material(str(tiny), None, 1, (1000, 1000), 0)
    assert not short.trained and short.data != given.data
