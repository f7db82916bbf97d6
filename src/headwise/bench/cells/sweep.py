"""Sweeps: methods x budgets x tasks x lengths from one small TOML file, resumable after any interruption."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from headwise.bench.cells.bench import Bench
from headwise.bench.cells.pool import Executor
from headwise.errors import HeadwiseError
from headwise.files import read_text, write_json
from headwise.schema import Facts, Seed, checked
from headwise.tasks.taskbook import module_of
from headwise.watch import Watch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CELLS = "cells"  # the folder below a sweep's own where each cell is a file
EXAMPLE = 'recipes = ["snapkv", "quest"], budgets = [0.1, 0.25], tasks = ["needle"], contexts = [1024, 4096]'


class Sweep(Facts):
    """What a sweep file says; every key may be missing, and nothing else may be there.

    model: path or hub id, the embedded model by default. recipes, plans (paths), tasks: as the options of `headwise
    bench`; none named is what that does. budgets: shares of dense bytes. contexts: tokens. items: documents of each.
    calibration: a calibration file (path), the embedded model's own by default.
    """

    model: str | None = None
    recipes: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (0.1, 0.25)
    contexts: tuple[int, ...] = (1024,)
    items: int = 1
    seed: Seed = 0
    dtype: str = "auto"
    device: str = "cpu"
    calibration: str | None = None

    @classmethod
    def load(cls, path: Path, modules: Collection[str] = ()) -> Sweep:
        """Read a sweep file; HeadwiseError names unknown keys and values of the wrong kind.

        A file that came from elsewhere must not run code: a task `module:Class` is refused unless whoever starts the
        sweep names its module in `modules`.
        """
        try:
            said = tomllib.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise HeadwiseError(f"cannot read {path} as TOML ({error}); write it like: {EXAMPLE}") from None
        known = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
        sweep = checked(cls, known, str(path), HeadwiseError, f"write it like: {EXAMPLE}")
        for task in sweep.tasks:
            module = module_of(task)
            if module is not None and module not in modules:
                raise HeadwiseError(
                    f"{path}: tasks = ['{task}'] would import the module '{module}', and a file imports nothing by "
                    f"itself; say `--module {module}` on the command line if you trust it"
                )
        return sweep


def run_sweep(
    bench: Bench,
    folder: Path,
    *,
    executor: Executor,
    watch: Watch,
    name: str,
    each: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure what is missing in `folder`, and write result.json and timings.json there.

    Each cell is one file of `folder`/CELLS, written whole or not at all under a hash of all that decides it; a cell
    that is there is never measured again. result.json holds no times, so it is the same however often a sweep was
    interrupted. each: shown every result that is made, at once.
    """
    result = bench.run(executor=executor, folder=folder / CELLS, watch=watch, name=name, each=each)
    timings = result.pop("timings")
    write_json(folder / "timings.json", timings)
    write_json(folder / "result.json", result)
    return result | {"timings": timings}
