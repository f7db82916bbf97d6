"""Sweeps: methods x budgets x tasks x lengths from one small TOML file, resumable after any interruption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from headwise.bench.bench import Bench
from headwise.bench.pool import Crew, Watch
from headwise.errors import HeadwiseError, did_you_mean
from headwise.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CELLS = "cells"  # the folder below a sweep's own where each cell is a file
EXAMPLE = 'recipes = ["snapkv", "quest"], budgets = [0.1, 0.25], tasks = ["needle"], contexts = [1024, 4096]'


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says; every key may be missing, and nothing else may be there.

    model: path or hub id, the embedded model by default. recipes, plans (paths), tasks: as the options of `headwise
    bench`; none named is what that does. budgets: shares of dense bytes. contexts: tokens. items: documents of each.
    calibration: a calibration file (path), the embedded model's own by default.
    """

    model: str | None = None
    recipes: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (0.1, 0.25, 0.5)
    contexts: tuple[int, ...] = (1024,)
    items: int = 1
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    calibration: str | None = None

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a sweep file; HeadwiseError names unknown keys and values of the wrong kind."""
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HeadwiseError(f"cannot read {path} as TOML ({error}); write it like: {EXAMPLE}") from None
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in said.items():
            if key not in known:
                raise HeadwiseError(f"{path}: unknown key '{key}'; {did_you_mean(key, known)}")
            _check_kind(path, key, value, known[key])
            values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def run_sweep(
    bench: Bench,
    folder: Path,
    *,
    crew: Crew,
    watch: Watch,
    name: str,
    each: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure what is missing in `folder`, and write result.json and timings.json there.

    Each cell is one file of `folder`/CELLS, written whole or not at all under a hash of all that decides it; a cell
    that is there is never measured again. result.json holds no times, so it is the same however often a sweep was
    interrupted. each: shown every result that is made, at once.
    """
    result = bench.run(crew=crew, folder=folder / CELLS, watch=watch, name=name, each=each)
    timings = result.pop("timings")
    write_text(folder / "timings.json", json.dumps(timings, indent=1))
    write_text(folder / "result.json", json.dumps(result, indent=1))
    return result | {"timings": timings}


def _check_kind(path: Path, key: str, value: object, default: object) -> None:
    if isinstance(default, tuple):
        kinds: tuple[type, ...] = (int, float) if key == "budgets" else (int,) if key == "contexts" else (str,)
        if isinstance(value, list) and all(isinstance(one, kinds) and not isinstance(one, bool) for one in value):
            return
        expected = f"a list of {'texts' if str in kinds else 'numbers'}"
    else:
        kind = str if default is None else type(default)
        if isinstance(value, kind) and not isinstance(value, bool):
            return
        expected = "a text" if kind is str else "a whole number"
    raise HeadwiseError(f"{path}: {key} = {value!r} should be {expected}; write it like: {EXAMPLE}")
