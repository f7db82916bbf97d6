"""`headwise bench`: every method at several budgets on the default tasks, judged against its baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Csv, Device, Dtype, Fresh, Json, Model, Plans, Recipes, Seed, State, Workers
from headwise.report.terminal import plain

if TYPE_CHECKING:
    from headwise.bench.cells.bench import Bench

CONTEXT = 1024  # so that every method is through in ten minutes on two cores; longer ones tell more


@command("bench")
def bench(
    model: Model = None,
    recipe: Recipes = None,
    plan: Plans = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task with its settings; may be given often: docs/reference/tasks.md."),
    ] = None,
    share: Annotated[
        str, typer.Option(help="Shares of dense bytes, with commas between, for recipes that name none.")
    ] = "0.1,0.25",
    context: Annotated[
        str, typer.Option(help="Tokens of a document with its longest question; several with commas between.")
    ] = str(CONTEXT),
    items: Annotated[int, typer.Option(help="Documents of each task at each length.")] = 1,
    as_json: Json = False,
    report: Annotated[Path, typer.Option(help="The page with pictures, an .html file.")] = Path("headwise-bench.html"),
    csv: Csv = None,
    seed: Seed = 0,
    workers: Workers = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    calibration: Annotated[
        Path | None,
        typer.Option(help="A calibration file, for methods that use one; the embedded model's own by default."),
    ] = None,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Compare methods on tasks: scores, bytes, and whether a method beats random eviction and sinks + recent.

    Without a --recipe or --plan, every method is compared, and some pairs.
    """
    from headwise.bench.cells.pool import Processes
    from headwise.cli.given import check_outputs, made_bench, own_workers, several, token_count
    from headwise.cli.given import share as share_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state, unfinished
    from headwise.report.bench_page import write_page

    check_outputs(report=report, csv=csv)
    check_state(state)
    executor = Processes(own_workers(workers))
    shares, contexts = several("--share", share, share_of), several("--context", context, token_count)
    with Watcher() as watch:
        watch("loading")
        made: Bench = made_bench(
            model, recipes=recipe or (), plans=plan or (), tasks=task or (), seed=seed, items=items, dtype=dtype,
            budgets=shares, contexts=contexts, device=device, calibration=calibration,
        )  # fmt: skip
        facts = sorted(cell.key(made.setting) for cell in made.cells)
        with unfinished("bench", facts, watch, state=state, fresh=fresh) as folder:
            result = made.run(
                executor=executor, folder=folder, watch=watch, name=model or "embedded",
                each=lambda one: watch.finished(cell_line(one)),
            )  # fmt: skip
    write_page(result, report)
    finish(result, csv, as_json, report)


def cell_line(result: dict[str, Any]) -> str:
    """A finished cell in a line."""
    from headwise.bench.arms import label_of

    cell = result["cell"]
    name = f"{cell['task']} at {cell['context']}: {label_of(cell['arm'])}"
    if result["refused"]:
        return f"{name} refused: {result['refused']}"
    scores = [sample["score"] for sample in result["samples"]]
    held, dense = (sum(one[key] for one in result["documents"]) for key in ("cache_bytes", "dense_bytes"))
    return f"{name} scores {sum(scores) / len(scores):.2f} of {len(scores)} asks, {held / dense:.1%} of dense bytes"


def finish(result: dict[str, Any], csv: Path | None, as_json: bool, *written: Path | None) -> None:
    """Write the flat table; print the JSON object, or the table for people and what was written."""
    from headwise.report.bench_csv import write_csv
    from headwise.report.bench_table import notes, terminal_table
    from headwise.report.terminal import stdout

    if csv is not None:
        write_csv(result, csv)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    console = stdout()
    console.print(terminal_table(result))
    for line in notes(result) + [f"written: {path}" for path in (*written, csv) if path is not None]:
        console.print(plain(line), soft_wrap=True)
