"""Sweeps: killed at any moment and started again they end as if nothing had happened, and measure nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from headwise.bench.cells.cluster import Cluster
from headwise.bench.cells.sweep import Sweep
from headwise.bench.cells.worker import Setting
from headwise.bench.judging.compare import compared, load_result
from headwise.cli.main import app
from headwise.errors import HeadwiseError
from tests.cli.conftest import tiny  # noqa: F401 (a fixture)

FILE = """
model = "{model}"
recipes = ["keydiff", "int8", "quest"]
budgets = [0.3, 0.6]
tasks = ["tests.bench.tiny_task:Recall(facts=2)"]
contexts = [500, 700]
items = 1
"""


def start(folder: Path, out: str, *executor: str) -> subprocess.Popen[str]:
    options = ["sweep.toml", "--module", "tests.bench.tiny_task", "--out", out, *executor]
    command = [sys.executable, "-m", "headwise.cli.main", "sweep", *options]
    root = Path(__file__).parents[3]
    paths = {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(running: subprocess.Popen[str]) -> None:
    told, _ = running.communicate(timeout=300)
    assert running.returncode == 0, told


def sweep(folder: Path, out: str) -> None:
    """One in this process from start to end."""
    options = ["--module", "tests.bench.tiny_task", "--out", str(folder / out), "--workers", "1"]
    found = CliRunner().invoke(app, ["sweep", str(folder / "sweep.toml"), *options])
    assert found.exit_code == 0, found.output


def cells(folder: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


def test_a_killed_sweep_goes_on(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "sweep.toml").write_text(FILE.format(model=tiny))
    sweep(tmp_path, "whole")
    whole = cells(tmp_path / "whole")
    kill_at = Random(os.getpid()).randrange(1, len(whole) - 2)  # another moment each time; the result must not care
    running = start(tmp_path, "broken", "--workers", "2")
    while len(cells(tmp_path / "broken")) < kill_at and running.poll() is None:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    left = -1
    while left != len(cells(tmp_path / "broken")):  # its processes notice and end
        left = len(cells(tmp_path / "broken"))
        time.sleep(2)
    before = cells(tmp_path / "broken")
    assert not (tmp_path / "broken" / "result.json").exists()
    assert kill_at <= len(before) < len(whole)
    sweep(tmp_path, "broken")
    after = cells(tmp_path / "broken")
    assert after.keys() == whole.keys()
    assert {name: after[name] for name in before} == before, "nothing is measured twice"
    one, other = ((tmp_path / name / "result.json").read_bytes() for name in ("whole", "broken"))
    assert one == other
    result = load_result(tmp_path / "broken" / "result.json")
    assert compared(result, result)["unlike"] == []
    assert len(json.loads((tmp_path / "broken" / "timings.json").read_text())) == len(result["rows"])


@pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install "headwise[ray]"')
def test_a_ray_cluster_gives_the_same_result(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "sweep.toml").write_text(FILE.format(model=tiny))
    finish(start(tmp_path, "here", "--workers", "1"))
    finish(start(tmp_path, "cluster", "--ray", "local", "--workers", "2"))
    assert cells(tmp_path / "cluster").keys() == cells(tmp_path / "here").keys()
    one, other = ((tmp_path / name / "result.json").read_bytes() for name in ("here", "cluster"))
    assert one == other


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_without_ray_says_what_to_install() -> None:
    setting = Setting("nowhere", "", "auto", "cpu", 1, 0)
    with pytest.raises(HeadwiseError, match=r"pip install 'headwise\[ray\]'"):
        list(Cluster("auto").run(setting, [], None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipies = []", "did you mean 'recipes'"),
        ("budgets = 0.1", "budgets = 0.1 should be a list"),
        ("items = 'two'", "items = 'two' should be a whole number"),
        ("model = ", "cannot read"),
        ("contexts = [true]", "contexts.0 = True should be a whole number"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(HeadwiseError, match=message):
        Sweep.load(path)
