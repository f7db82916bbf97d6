"""Where long commands keep what they finished: found or refused before a model is loaded."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise.caches import cache_folder
from headwise.errors import HeadwiseError
from headwise.kept import forget, keep
from tests.cli.conftest import Command


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)
    with pytest.raises(HeadwiseError, match="set HOME or XDG_CACHE_HOME"):
        cache_folder()


@pytest.mark.parametrize(
    "command",
    ["run {model}", "bench {model}", "speed int8 {model}", "tune {model} --share 0.5 --out {at}/a.plan"],
    ids=lambda text: text.split()[0],
)
def test_a_folder_that_holds_nothing_is_refused_before_a_model_is_loaded(
    command: str, tiny: Path, tmp_path: Path, headwise: Command, no_model: None
) -> None:
    (tmp_path / "file").write_text("")
    words = command.format(model=tiny, at=tmp_path).split()
    told = headwise(*words, "--state", tmp_path / "file" / "state")
    assert told.exit_code == 2, told.output
    assert "cannot be kept" in told.stderr and "--state" in told.stderr


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_seed_beyond_64_bits_is_refused_before_a_model_is_loaded(command: str, tiny: Path, headwise: Command) -> None:
    told = headwise(command, tiny, "--seed", 2**70)
    assert told.exit_code == 2 and "no whole number of 64 bits" in told.stderr


def test_a_folder_in_which_another_call_still_writes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command may run twice at once: what the other one finishes at this moment is its own."""
    folder, found = tmp_path / "run-1", Path.iterdir
    keep(folder, "a", {})

    def iterdir(self: Path) -> Iterator[Path]:
        names = list(found(self))
        keep(folder, "b", {})
        return iter(names)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    forget(folder, ["a"])  # whether or not it looks into the folder first
