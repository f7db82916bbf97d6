"""Finds and opens the compiled kernels: one library per instruction level, the highest that this processor runs."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from headwise.errors import HeadwiseError, did_you_mean

FOLDER = Path(__file__).parent / "lib"
LEVELS = ("avx512bf16", "avx512", "avx2", "baseline")  # best first


def missing() -> str:
    """Why there are no kernels here; empty where there are."""
    if (FOLDER / "baseline.so").is_file():
        return ""
    return (
        "the native kernels are not built (no C++ compiler at install time?); install a C++20 compiler and run "
        "`pip install --force-reinstall --no-deps headwise`, or `python native/build.py` in a checkout"
    )


@cache
def supported(level: str) -> str:
    """Why this processor or this install cannot run a level; empty if it can."""
    if level not in LEVELS:
        raise HeadwiseError(f"no instruction level '{level}'; {did_you_mean(level, list(LEVELS))}")
    if why := missing():
        return why
    if not (FOLDER / f"{level}.so").is_file():
        return f"no library was compiled for {level}; run `python native/build.py --levels {level}`"
    try:
        asked = ctypes.CDLL(str(FOLDER / "baseline.so")).headwise_supports
    except OSError as error:
        return f"the native library does not open: {error}; rebuild it with `python native/build.py`"
    return "" if asked(level.encode()) else f"this processor has no {level}"


@cache
def best_level() -> str | None:
    """The highest level that works here, or None."""
    return next((level for level in LEVELS if not supported(level)), None)


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
    return ctypes.CDLL(str(FOLDER / f"{level or best_level()}.so"))
