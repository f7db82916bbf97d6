"""`headwise sweep`: a comparison described by a small file, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwise.cli.commands import command
from headwise.cli.options import Csv, Fresh, Report, Workers


@command("sweep")
def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file: recipes, plans, budgets, tasks, contexts, items, seed")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default the file's name without its ending.")
    ] = None,
    workers: Workers = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on the machines of a Ray cluster: its address, `auto`, or `local`.")
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", help="A module of yours whose tasks the file may name; by itself it imports none."),
    ] = None,
    report: Report = None,
    csv: Csv = None,
    fresh: Fresh = False,
) -> None:
    """Measure methods x budgets x tasks x lengths. Stopped at any moment and started again, it goes on where it was."""
    from headwise.bench.cells.cluster import Cluster
    from headwise.bench.cells.pool import Processes
    from headwise.bench.cells.sweep import CELLS, Sweep, run_sweep
    from headwise.cli.commands.bench import cell_line, finish
    from headwise.cli.given import check_outputs, made_bench, own_workers
    from headwise.cli.progress import Watcher
    from headwise.cli.state import tell_kept
    from headwise.errors import HeadwiseError
    from headwise.kept import forget, kept_keys

    check_outputs(report=report, csv=csv)
    said = Sweep.load(file, modules or ())
    folder = file.with_suffix("") if out is None else out
    if folder.exists() and not folder.is_dir():
        raise HeadwiseError(f"--out: {folder} is a file; give a folder for the results")
    executor = Processes(own_workers(workers)) if ray is None else Cluster(ray, workers)
    with Watcher() as watch:
        watch("loading")
        made = made_bench(
            said.model, recipes=said.recipes, plans=[Path(plan) for plan in said.plans], tasks=said.tasks,
            budgets=said.budgets, contexts=said.contexts, items=said.items, seed=said.seed, dtype=said.dtype,
            device=said.device, calibration=None if said.calibration is None else Path(said.calibration),
        )  # fmt: skip
        keys = {cell.key(made.setting) for cell in made.cells}
        if fresh:
            forget(folder / CELLS, keys)
        tell_kept(watch, folder / CELLS, len(keys.intersection(kept_keys(folder / CELLS))))
        result = run_sweep(
            made, folder, executor=executor, watch=watch, name=said.model or "embedded",
            each=lambda one: watch.finished(cell_line(one)),
        )  # fmt: skip
    if report is not None:
        from headwise.report.bench_page import write_page

        write_page(result, report)
    finish(result, csv, False, folder / "result.json", report)
