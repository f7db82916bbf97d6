"""Which instruction level is used: none whose answers are wrong, and none that a compiler cannot make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise.kernels.native import library
from headwise.kernels.native.backend import Native
from tests.attention_cases import NATIVE, build_emulated

CXX = shutil.which(os.environ.get("CXX", "c++"))
pytestmark = [
    pytest.mark.skipif(bool(library.missing()), reason=f"until the kernels are built: {library.missing()}"),
    pytest.mark.skipif(CXX is None, reason="until there is a C++ compiler"),
]
CACHED = (library.supported, library.best_level, library.library)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of libraries with `baseline` alone, in use as long as the test runs."""
    shutil.copy(library.FOLDER / "baseline.so", tmp_path)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    for one in CACHED:
        one.cache_clear()
    yield tmp_path
    for one in CACHED:
        one.cache_clear()


def fake(level: str, folder: Path, code: str) -> None:
    """A library of a level made of `code`."""
    source = folder / "fake.cpp"
    source.write_text(f"#include <cmath>\n{code}")
    subprocess.run([str(CXX), "-shared", "-fPIC", str(source), "-o", str(folder / f"{level}.so")], check=True)


def interface(number: int) -> str:
    return f'extern "C" int headwise_interface() {{ return {number}; }}'


def trial(code: str) -> str:
    return f'{interface(library.INTERFACE)} extern "C" void headwise_trial(float* to) {{ {code} }}'


@pytest.mark.parametrize(
    ("spoil", "works"),
    [("", True), ("to[3839] += 0.001f;", True), ("to[3839] += 0.1f;", False), ("to[5] = NAN;", False)],
)
def test_a_level_with_wrong_answers_does_not_work(folder: Path, spoil: str, works: bool) -> None:
    right = ", ".join(map(str, library._trial("baseline")))
    copy = f"const float right[] = {{{right}}}; for (int i = 0; i < {library.TRIAL}; i++) to[i] = right[i];"
    fake("amx_emulated", folder, trial(copy + spoil))
    why = library.supported("amx_emulated")
    assert (why == "") if works else ("computes a small prompt wrongly" in why)


def test_the_level_below_is_used_then_and_the_doctor_says_why(folder: Path) -> None:
    fake("avx2", folder, trial("to[0] = 1.0f;"))
    if "no avx2" in library.supported("avx2"):
        pytest.skip("until a processor has avx2")
    assert library.best_level() == "baseline"
    usable, told = Native().available()
    assert usable
    assert told.startswith("compiled kernels, level baseline (not amx: ")
    assert "not avx2: avx2 computes a small prompt wrongly" in told
    assert "--levels avx512bf16" in told


def test_a_level_that_the_system_withholds_is_told_apart(folder: Path) -> None:
    fake(
        "baseline",
        folder,
        'extern "C" int headwise_supports(const char*) { return 2; } ' + interface(library.INTERFACE),
    )
    fake("amx", folder, trial(""))
    assert "the system withholds it" in library.supported("amx")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("int nothing;", f"has interface 1, not {library.INTERFACE}; run `python native/build.py`"),
        (interface(library.INTERFACE + 1), f"has interface {library.INTERFACE + 1}, not {library.INTERFACE}"),
        (interface(library.INTERFACE), "rebuild it"),
    ],
)
def test_libraries_of_another_version_are_told(folder: Path, code: str, told: str) -> None:
    fake("amx_emulated", folder, code)
    assert told in library.supported("amx_emulated")


@pytest.mark.parametrize("level", [*library.LEVELS, library.EMULATED])
def test_no_level_fails_its_trial(level: str) -> None:
    build_emulated()
    assert "wrongly" not in library.supported(level)  # the other tests leave out what is not supported


def test_the_emulated_level_works_and_is_never_the_best() -> None:
    build_emulated()
    assert library.supported(library.EMULATED) == ""
    assert library.EMULATED not in library.LEVELS
    assert library.best_level() != library.EMULATED


def test_a_compiler_without_amx_builds_the_others(tmp_path: Path) -> None:
    old = tmp_path / "old-compiler"
    refusal = "error: unrecognized command-line option '-mamx-tile'"
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mamx-tile*) echo "{refusal}" >&2; exit 1;; esac\nexec {CXX} "$@"\n')
    old.chmod(0o755)
    stale = tmp_path / "amx.so"
    stale.touch()
    command = [sys.executable, str(NATIVE / "build.py"), "--levels", "amx", "--out", str(tmp_path)]
    environment = os.environ | {"CXX": str(old)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert "level amx not built, the next lower one will be used" in done.stderr
    assert refusal in done.stderr
    assert not stale.exists()
