"""Finds and opens the compiled kernels: one library per instruction level, the highest that works here.

A level works if the processor has its instructions and a small prompt comes out as it does in plain C++.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from headwise.errors import HeadwiseError, did_you_mean

FOLDER = Path(__file__).parent / "lib"
LEVELS = ("amx", "avx512bf16", "avx512", "avx2", "baseline")  # best first
EMULATED = "amx_emulated"  # for tests, which build it: never the best
INTERFACE = 13  # what native/cpu.cpp says of the libraries that these files know how to call
TRIAL = 40 * 2 * 48  # floats that `headwise_trial` of native/prefill.cpp writes, below 1 in size
TRIAL_LIMIT = 0.02  # what roundings to bfloat16, of outputs and of weights, may differ by


def missing() -> str:
    """Why there are no kernels here; empty where there are."""
    if (FOLDER / "baseline.so").is_file():
        return ""
    return (
        "the native kernels are not built (no C++ compiler at install time?); install a C++20 compiler and run "
        "`pip install --force-reinstall --no-deps headwise`, or `python native/build.py` in a checkout"
    )


def _open(level: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(FOLDER / f"{level}.so"))


def _interface(level: str) -> int:
    library = _open(level)
    return int(library.headwise_interface()) if hasattr(library, "headwise_interface") else 1


def _trial(level: str) -> list[float]:
    out = (ctypes.c_float * TRIAL)()
    _open(level).headwise_trial(out)
    return list(out)


@cache
def supported(level: str) -> str:
    """Why this processor or this install cannot run a level; empty if it can."""
    if level not in (*LEVELS, EMULATED):
        raise HeadwiseError(f"no instruction level '{level}'; {did_you_mean(level, list(LEVELS))}")
    if why := missing():
        return why
    if not (FOLDER / f"{level}.so").is_file():
        return f"no library was compiled for {level}; run `python native/build.py --levels {level}`"
    try:
        if (found := _interface(level)) != INTERFACE:
            return f"the native library has interface {found}, not {INTERFACE}; run `python native/build.py`"
        return _verdict(level)
    except (OSError, AttributeError) as error:
        return f"the native library does not open: {error}; rebuild it with `python native/build.py`"


def _verdict(level: str) -> str:
    answer = _open("baseline").headwise_supports(level.encode())
    if answer == 0:
        return f"this processor has no {level}"
    if answer == 2:
        return f"this processor has {level}, but the system withholds it; Linux 5.16 or newer hands it out"
    right = [abs(a - b) <= TRIAL_LIMIT for a, b in zip(_trial(level), _trial("baseline"), strict=True)]
    wrong = right.count(False)  # a NaN among them
    told = f"{level} computes a small prompt wrongly: {wrong} of {TRIAL} numbers are not baseline's; please report it"
    return told if wrong else ""


@cache
def best_level() -> str | None:
    """The highest level that works here, or None."""
    return next((level for level in LEVELS if not supported(level)), None)


def passed_over() -> str:
    """The levels above the best, and why they are not used; empty where there are none."""
    above = LEVELS[: LEVELS.index(best_level() or LEVELS[0])]
    return "; ".join(f"not {level}: {supported(level)}" for level in above)


def unusable(level: str | None = None) -> str:
    """Why a level, by default the best there is, cannot be used here; empty if it can."""
    if level is not None:
        return supported(level)
    return "" if best_level() else missing() or supported("baseline")


@cache
def library(level: str | None = None) -> ctypes.CDLL:
    """The kernels of a level, by default the best. Raises HeadwiseError with the reason when it cannot be used."""
    if why := unusable(level):
        raise HeadwiseError(why)
    return _open(level or str(best_level()))
