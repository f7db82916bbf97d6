"""The short form of every machine; `make fuzz MINUTES=60` runs them on with fresh seeds."""

from __future__ import annotations

import pytest

from tests.fuzz import Machine, all_machines
from tests.fuzz.__main__ import main, run

SHORT = {"attend": 100, "pages": 100, "sessions": 4, "caches": 3, "threads": 3, "rows": 2}


@pytest.mark.parametrize(("name", "machine"), all_machines().items(), ids=list(all_machines()))
def test_a_few_cases(name: str, machine: Machine) -> None:
    machine(0, SHORT.get(name, 20))


def wrong_at(bad: int) -> Machine:
    def machine(seed: int, examples: int) -> None:
        assert seed != bad, "a planted failure"

    return machine


def test_the_runner_counts_names_the_seed_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    tallies = run({"right": wrong_at(-1), "wrong": wrong_at(7)}, 0.0, 7, 10)
    assert [tally.seeds for tally in tallies.values()] == [[], [7]]
    assert str(tallies["wrong"]).endswith("--only wrong --examples 10 --seed 7")
    assert "a planted failure" in capsys.readouterr().err


def test_the_runner_gives_all_machines_their_time() -> None:
    tallies = run({"one": wrong_at(-1), "other": wrong_at(-1)}, 0.05, None, 10)
    assert all(tally.cases >= 10 for tally in tallies.values())


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "attend", "--seed", "3", "--examples", "5"]) == 0
    assert "5 cases, 0 failures" in capsys.readouterr().out
