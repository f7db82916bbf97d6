"""`headwise compare-layers`: layer sentences in one small host, trained alike."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Fresh, Json, State

if TYPE_CHECKING:
    from headwise.bench.layers import Trained


@command("compare-layers")
def compare_layers(
    file: Annotated[Path, typer.Argument(help="A TOML file: host, seeds, sides, baselines, tasks.")],
    rows: Annotated[
        str, typer.Option(help="Sides by name, or systems by number, with commas between; all by default.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="The JSON file of the result.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The .png file to draw.")] = None,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Train one small host with each of some attention layers alike, from several seeds, and ask all at lengths
    beyond those that they were trained at."""
    from headwise.bench.layers import Comparison, compared
    from headwise.bench.provenance import machine, versions
    from headwise.bench.statements import judged
    from headwise.cli.given import check_outputs
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state, unfinished
    from headwise.files import write_bytes, write_json
    from headwise.findings import as_data
    from headwise.kept import once
    from headwise.report.layers_table import picture as drawn
    from headwise.report.pictures import as_png
    from headwise.seams.transformers.load import quiet

    quiet()
    check_outputs(out=out, picture=picture)
    check_state(state)
    said = Comparison.load(file)
    said = said.only([row.strip() for row in rows.split(",")]) if rows else said
    with Watcher() as watch:
        facts = {"host": said.host.model_dump()}
        with unfinished("compare-layers", facts, watch, state=state, fresh=fresh) as folder:
            found = compared(said, lambda key, make: once(folder, key, make), watch, watch_finished(watch))
    told = {"machine": machine(), "versions": versions(), "date": date.today().isoformat()}
    result = told | {"command": f"headwise compare-layers {file}", **found}
    result["findings"] = as_data(judged(said.statements, result))
    if out is not None:
        write_json(out, result)
    if picture is not None:
        write_bytes(picture, as_png(drawn(result)))
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _print(result, [path for path in (out, picture) if path is not None])


def watch_finished(watch: Any) -> Any:
    """Tells of each finished training."""

    def tell(cell: Trained, result: dict[str, Any]) -> None:
        right = ", ".join(f"{share:.0%} at {length}" for length, share in result["accuracy"].items())
        watch.finished(f"{cell.label}: {right}")

    return tell


def _print(result: dict[str, Any], written: list[Path]) -> None:
    from rich.table import Table

    from headwise.findings import Finding
    from headwise.report.layers_table import ordered
    from headwise.report.terminal import plain, stdout, visible

    for task in result["tasks"]:
        lengths = [f"{n} tokens" for n in task["lengths"]]
        table = Table("side", "sentence", *lengths, "pairs read", "bytes held", "rate", title=plain(task["task"]))
        for name, side in ordered(task):
            right = [f"{100 * side['accuracy'][str(n)]['mean']:.1f} %" for n in task["lengths"]]
            own = (f"{100 * side['read']:.0f} %", f"{side['state_bytes']:,}", f"{side['lr']:g}")
            table.add_row(plain(name), plain(side["sentence"]), *right, *own)
        stdout().print(table)
    typer.echo("means over seeds; --json tells every seed, the intervals, and the differences from the baselines")
    for finding in result["findings"]:
        one = Finding.model_validate(finding)
        typer.echo(f"row {one.row}, {one.state}: {one.says}")
    for path in written:
        typer.echo(visible(f"wrote {path}"))
