"""What is told while a command works: how far it is, about how long it takes, and every finished row at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from headwise.cli import progress
from headwise.cli.progress import Watcher, about
from tests.cli.conftest import Command


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_plain_lines_tell_percent_and_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher() as watch:
        watch("loading")
        watch("reading", 0, 100)
        for step in range(1, 41):
            clock.now += 1
            watch("reading", step, 100)
        watch("answering", 50, 100)
    assert lines(capsys) == [
        "loading ...",
        "reading: 0 %",
        "reading: 10 %, about 90 s left",
        "reading: 20 %, about 80 s left",
        "reading: 30 %, about 70 s left",
        "reading: 40 %, about 60 s left",
        "answering: 50 %, about 40 s left",
    ]


def test_the_estimate_is_of_what_was_done_now(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that were taken over took no time of this call."""
    with Watcher() as watch:
        watch("measuring", 90, 100)
        clock.now += 20
        watch("measuring more", 92, 100)
    assert lines(capsys)[-1] == "measuring more: 92 %, about 80 s left"


def test_rows_are_told_at_once_and_again_when_stopped(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Watcher() as watch:
        watch.resume = "how to go on"
        watch.finished("my[/x].plan: 3 of 4")
        assert lines(capsys) == ["my[/x].plan: 3 of 4"]
        raise KeyboardInterrupt
    assert lines(capsys) == ["stopped; finished: 1", "  my[/x].plan: 3 of 4", "how to go on"]


def test_a_terminal_gets_one_live_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=out, force_terminal=True, width=100))
    with Watcher() as watch:
        watch("my[/x].plan: reading", 1, 4)
        clock.now += 30
        watch("my[/x].plan: reading", 2, 4)
        watch.finished("a row")
    told = out.getvalue()
    assert "my[/x].plan: reading" in told and "50 %, about 60 s left" in told and "a row" in told


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (130, "2 min"), (5000, "83 min"), (9000, "2.5 h")])
def test_times_are_round(seconds: float, text: str) -> None:
    assert about(seconds) == text


QUICK = {
    "run": ["{model}", "--facts", "2", "--max-new-tokens", "3", "--context", "600"],
    "speed": ["streaming(40)", "{model}", "--context", "60,70", "--new-tokens", "3", "--repetitions", "3",
              "--batch-memory", "200KiB"],
    "bench": ["{model}", "--recipe", "keydiff(0.5)", "--context", "500", "--task",
              "tests.bench.tiny_task:Recall(facts=2)", "--workers", "1", "--report", "{at}/bench.html"],
    "calibrate": ["{model}", "--only", "keys,profile", "--out", "{at}/my.calibration", "--context", "800",
                  "--documents", "1"],
}  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_stdout_is_one_object_and_progress_is_on_stderr(
    headwise: Command, tiny: Path, tmp_path: Path, name: str
) -> None:
    found = headwise(name, *(word.format(model=tiny, at=tmp_path) for word in QUICK[name]), "--json")
    assert found.exit_code == 0, found.output
    assert isinstance(json.loads(found.stdout), dict)
    told = [line for line in found.stderr.splitlines() if re.search(r": \d+ %(, about .* left)?$", line)]
    assert told and any("left" in line for line in told), found.stderr
