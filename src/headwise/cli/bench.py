"""`headwise bench`: every method at several budgets on the default tasks, judged against its baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from headwise.bench.bench import Bench

CONTEXT = 1024  # so that every method is through in ten minutes on two cores; longer ones tell more


def bench(
    model: Annotated[str | None, typer.Option(help="A model's path or hub id; the embedded model by default.")] = None,
    recipes: Annotated[
        list[str] | None, typer.Option(help="A recipe; may be given often. By default every method and some pairs.")
    ] = None,
    plans: Annotated[list[Path] | None, typer.Option(help="A plan file; may be given often.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="A task with its settings; may be given often; see docs/tasks.md.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Shares of dense bytes, for recipes that name none.")] = "0.1,0.25,0.5",
    contexts: Annotated[str, typer.Option(help="Tokens of a document with its longest question.")] = str(CONTEXT),
    items: Annotated[int, typer.Option(help="Documents of each task at each length.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    report: Annotated[Path, typer.Option(help="The page with pictures, an .html file.")] = Path("headwise-bench.html"),
    csv: Annotated[Path | None, typer.Option(help="Write a table for pandas and the like to this .csv file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of documents, random eviction and intervals.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with its own model; by default one a core, at most 8.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
    calibration: Annotated[
        Path | None,
        typer.Option(help="A calibration file, for methods that use one; the embedded model's own by default."),
    ] = None,
) -> None:
    """Compare methods on tasks: scores, bytes, and whether a method beats random eviction and sinks + recent."""
    from headwise.bench.pool import Processes
    from headwise.cli.given import check_report, made_bench, numbers, own_workers
    from headwise.cli.methods import stdout
    from headwise.cli.progress import Watcher
    from headwise.report.bench_csv import write_csv
    from headwise.report.bench_page import write_page
    from headwise.report.bench_table import notes, terminal_table

    check_report(report)
    check_report(csv, "--csv")
    with Watcher(Console(stderr=True)) as watch:
        watch("loading")
        made: Bench = made_bench(
            model, recipes=recipes or (), plans=plans or (), tasks=tasks or (), seed=seed, items=items, dtype=dtype,
            budgets=numbers("--budgets", budgets, float), contexts=numbers("--contexts", contexts, int), device=device,
            calibration=calibration,
        )  # fmt: skip
        result = made.run(crew=Processes(own_workers(workers)), folder=None, watch=watch, name=model or "embedded")
    write_page(result, report)
    if csv is not None:
        write_csv(result, csv)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    console = stdout()
    console.print(terminal_table(result))
    written = [f"written: {path}" for path in (report, csv) if path is not None]
    for line in notes(result) + written:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
