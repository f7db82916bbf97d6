"""Every long command, killed after its first finished row and called again, takes that row over and ends as if nothing
had happened; stopped by Ctrl-C it says what is finished and how to go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headwise.assets import novel
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
TASK = "tests.bench.tiny_task:Recall(facts=2)"


@dataclass(frozen=True)
class Case:
    """arguments: after the command's name; `{model}`, `{at}` and `{state}` are filled in. first: words of the first
    finished row on stderr. kept: pattern of the files that hold finished rows, below `{at}`."""

    command: str
    arguments: str
    first: str
    kept: str = "state/*/*.json"


CASES = (
    Case("run", "{model} --facts 2 --max-new-tokens 4 --chunk 300 --state {state}", "held after"),
    Case(
        "speed",
        "streaming(40) {model} --context 100,200 --new-tokens 3 --repetitions 3 --batch-memory 1MiB --state {state}",
        "  first token",
    ),
    Case("check", "{at}/my.plan {model} --context 600 --facts 1 --state {state}", "distributions: KL"),
    Case(
        "bench",
        f"{{model}} --recipe keydiff --recipe int8 --share 0.5 --context 500 --task {TASK} --workers 1 "
        "--report {at}/bench.html --state {state}",
        " scores ",
    ),
    Case("sweep", "{at}/sweep.toml --module tests.bench.tiny_task --workers 1", " scores ", "sweep/cells/*.json"),
    Case(
        "calibrate",
        "{model} --only keys,profile,nats --out {at}/my.calibration --context 800 --documents 1",
        "measured profile",
        "my.calibration",
    ),
    Case(
        "tune",
        "{model} --docs {at}/docs --context 1k --train-context 900 --share 0.5 --candidate dense --candidate int8 "
        "--out {at}/tuned.plan --no-check --state {state}",
        "of dense bytes, loss",
        "state/**/*.[jt]*",
    ),
)


@pytest.fixture
def at(tmp_path: Path, tiny: Path) -> Path:
    """A folder with what the commands read."""
    seam = attach(load_model(tiny))
    Plan.uniform(seam.geometry, "int8", seam.fingerprint).save(tmp_path / "my.plan")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "text.txt").write_text(novel()[100_000:130_000])
    (tmp_path / "sweep.toml").write_text(
        f'model = "{tiny}"\nrecipes = ["keydiff", "int8"]\nbudgets = [0.5]\ntasks = ["{TASK}"]\ncontexts = [500]\n'
    )
    return tmp_path


def start(arguments: list[str], at: Path) -> subprocess.Popen[str]:
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **paths, "XDG_CACHE_HOME": str(at / "caches"), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, "-m", "headwise", *arguments], cwd=at, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(running: subprocess.Popen[str], words: str) -> list[str]:
    """The lines on stderr up to the one with these words."""

    def lines() -> Iterator[str]:
        assert running.stderr is not None
        for line in running.stderr:
            yield line
            if words in line:
                return
        raise AssertionError("it ended before")

    told = []
    for line in lines():
        told.append(line)
    return told


def filled(case: Case, at: Path, tiny: Path) -> list[str]:
    places = {"model": tiny, "at": at, "state": at / "state"}
    return [case.command, *(word.format(**places) for word in case.arguments.split())]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command)
def test_a_killed_command_goes_on(
    case: Case, at: Path, tiny: Path, headwise: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = filled(case, at, tiny)
    running = start(arguments, at)
    told = until(running, case.first)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert any("%" in line for line in told)
    before = {path: path.read_bytes() for path in at.glob(case.kept)}
    assert before
    monkeypatch.setenv("XDG_CACHE_HOME", str(at / "caches"))
    again = headwise(*arguments)
    assert again.exit_code == 0, again.output
    assert "taken over from" in again.stderr and "--fresh begins anew" in again.stderr
    after = {path: path.read_bytes() for path in at.glob(case.kept)}
    if case.command == "calibrate":  # one file, that grows
        assert "measured profile" not in again.stderr and "measured nats" in again.stderr
        return
    assert {path: after[path] for path in before} == before, "no finished row is made again"
    assert len(after) > len(before)


@pytest.mark.parametrize("name", ["run", "sweep", "calibrate"])
def test_fresh_begins_anew(name: str, at: Path, tiny: Path, headwise: Command) -> None:
    (case,) = (one for one in CASES if one.command == name)
    arguments = filled(case, at, tiny)
    assert headwise(*arguments).exit_code == 0
    assert "taken over" in headwise(*arguments).stderr
    fresh = headwise(*arguments, "--fresh")
    assert fresh.exit_code == 0 and "taken over" not in fresh.stderr and case.first in fresh.stderr


def test_ctrl_c_tells_what_is_finished_and_how_to_go_on(at: Path, tiny: Path) -> None:
    running = start(["run", str(tiny), "--facts", "2", "--max-new-tokens", "4", "--chunk", "300"], at)
    until(running, "held after")
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    told = running.stderr.read()
    assert running.wait() == 130
    assert "stopped; finished: " in told and "  dense: " in told.partition("stopped;")[2]
    assert "the same command goes on from here" in told and "Traceback" not in told


def test_without_a_state_folder_rows_last_until_all_are_there(
    at: Path, tiny: Path, headwise: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a second call, after one that was through, measures its times anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(at / "caches"))
    command = ("run", tiny, "--facts", 2, "--max-new-tokens", 4, "--no-compare", "--json")
    first, second = headwise(*command), headwise(*command)
    assert "what is finished is kept in" in first.stderr and "taken over" not in second.stderr
    assert json.loads(first.stdout)["rows"][0]["prefill_s"] != json.loads(second.stdout)["rows"][0]["prefill_s"]
    assert not list((at / "caches").rglob("*.json"))


def test_where_nothing_can_be_kept_is_said(at: Path, tiny: Path, headwise: Command) -> None:
    (at / "file").write_text("")
    found = headwise("run", tiny, "--facts", 2, "--state", at / "file" / "below")
    assert found.exit_code == 2 and "give --state FOLDER" in found.stderr


def test_a_damaged_row_is_named(at: Path, tiny: Path, headwise: Command) -> None:
    command = ("run", tiny, "--facts", 2, "--max-new-tokens", 4, "--no-compare", "--state", at / "state")
    assert headwise(*command).exit_code == 0
    (row,) = (at / "state").glob("*/*.json")
    row.write_text("{")
    found = headwise(*command)
    assert found.exit_code == 2 and f"{row}: invalid JSON" in found.stderr and "delete it" in found.stderr
    shutil.rmtree(at / "state")
