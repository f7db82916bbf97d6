"""`headwise sweep`: a comparison described by a small file, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file: recipes, plans, budgets, tasks, contexts, items, seed")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default the file's name without its ending.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with its own model; by default one a core, at most 8.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on the machines of a Ray cluster: its address, `auto`, or `local`.")
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", help="A module of yours whose tasks the file may name; by itself it imports none."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with pictures to this .html file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a table for pandas and the like to this .csv file.")] = None,
) -> None:
    """Measure methods x budgets x tasks x lengths. Stopped at any moment and started again, it goes on where it was."""
    from headwise.bench.cluster import Cluster
    from headwise.bench.pool import Processes
    from headwise.bench.sweep import Sweep, run_sweep
    from headwise.cli.given import check_report, made_bench, own_workers
    from headwise.cli.methods import stdout
    from headwise.cli.progress import Watcher
    from headwise.report.bench_csv import write_csv
    from headwise.report.bench_table import notes, terminal_table

    check_report(report)
    check_report(csv, "--csv")
    said = Sweep.load(file, modules or ())
    folder = file.with_suffix("") if out is None else out
    crew = Processes(own_workers(workers)) if ray is None else Cluster(ray, workers)
    with Watcher(Console(stderr=True)) as watch:
        watch("loading")
        made = made_bench(
            said.model, recipes=said.recipes, plans=[Path(plan) for plan in said.plans], tasks=said.tasks,
            budgets=said.budgets, contexts=said.contexts, items=said.items, seed=said.seed, dtype=said.dtype,
            device=said.device, calibration=None if said.calibration is None else Path(said.calibration),
        )  # fmt: skip
        name = said.model or "embedded"
        result = run_sweep(made, folder, crew=crew, watch=watch, name=name)
    if report is not None:
        from headwise.report.bench_page import write_page

        write_page(result, report)
    if csv is not None:
        write_csv(result, csv)
    console = stdout()
    console.print(terminal_table(result))
    written = [f"written: {path}" for path in (folder / "result.json", report, csv) if path is not None]
    for line in notes(result) + written:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
