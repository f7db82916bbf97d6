"""What several commands make of their options: numbers, processes, a comparison that was checked before it starts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from headwise.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.bench.bench import Bench

Number = TypeVar("Number", int, float)
MOST_WORKERS = 8  # each holds a copy of the model


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """`"0.1,0.25"` as numbers."""
    try:
        return tuple(kind(word) for word in text.split(","))
    except ValueError:
        raise HeadwiseError(f"{option} {text}: write numbers with commas between, without blanks") from None


def token_count(text: str) -> int:
    """`"32k"` -> 32768."""
    number, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not number.isdigit() or not int(number):
        raise HeadwiseError(f"--context {text} is no number of tokens; write it like 8192 or 32k")
    return int(number) * factor


def seconds(option: str, text: str) -> float:
    """`"20ms"` or `"0.02s"` -> 0.02."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if match is None or not float(match[1]):
        raise HeadwiseError(f"{option} {text} is no time; write it like 20ms or 0.5s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def own_workers(wanted: int | None) -> int:
    """Processes to use: as asked, else one a core this process may use."""
    if wanted is not None:
        return wanted
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def check_report(report: Path | None, option: str = "--report") -> None:
    """Refuse before any work a file that could not be written."""
    if report is not None and not report.absolute().parent.is_dir():
        raise HeadwiseError(f"{option}: there is no folder {report.absolute().parent}; make it first")


def made_bench(
    model: str | None,
    *,
    recipes: Sequence[str],
    plans: Sequence[Path],
    tasks: Sequence[str],
    budgets: Sequence[float],
    contexts: Sequence[int],
    items: int,
    seed: int,
    dtype: str,
    device: str,
    calibration: Path | None,
) -> Bench:
    """The comparison that these options mean; nothing named is everything there is."""
    from headwise.assets import embedded_calibration, embedded_model
    from headwise.bench.bench import Bench
    from headwise.bench.entry import check_budgets, default_sentences, entries
    from headwise.bench.taskbook import DEFAULT_TASKS, build_task
    from headwise.bench.work import Setting
    from headwise.calibrate.calibration import Calibration
    from headwise.engine.hf import attach
    from headwise.engine.load import load_model, quiet
    from headwise.errors import ContextError
    from headwise.plan import Plan

    quiet()
    check_budgets(budgets)
    if items < 1:
        raise HeadwiseError(f"--items {items}: nothing would be asked; give 1 or more")
    names = tuple(tasks) or DEFAULT_TASKS
    for name in names:
        build_task(name)
    sentences = tuple(recipes) or (() if plans else default_sentences())
    for path in plans:
        Plan.load(path)  # tells of an unchecked one once, not in every process
    listed = entries(sentences, plans, budgets)
    place = str(embedded_model()) if model is None else model
    seam = attach(load_model(place, dtype, device))
    limit = seam.geometry.max_positions
    for context in contexts:
        if not 1 <= context <= limit:
            raise ContextError(f"--contexts {context}: the model was trained on {limit} positions; give 1 to {limit}")
    own = embedded_calibration() if model is None and calibration is None else calibration
    told = ("", "") if own is None else (str(own), Calibration.load(own, seam.fingerprint).digest)
    setting = Setting(place, seam.fingerprint, dtype, device, items, seed, *told)
    return Bench(setting, tuple(listed), names, tuple(contexts))
