"""`headwise compare`: two results side by side, refused where they were not produced alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.report.terminal import plain


@command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A result of `headwise bench --json` or `headwise sweep`.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare though this differs: data, template, stop, settings, arms, model, versions, machine, seeds "
            "or all; may be given often."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two results row by row; refuses, and names what differs, where they were not produced alike."""
    from headwise.bench.judging.compare import compared, load_result
    from headwise.report.bench_table import score
    from headwise.report.terminal import stdout

    found = compared(load_result(first), load_result(second), allow or ())
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    table = Table("method", "first", "second", "second less first (95 %)", "byte-steps of dense")
    for row in found["rows"]:
        steps = " -> ".join(f"{share:.1%}" for share in row["byte_steps_of_dense"])
        scores = (f"{row['first']:.2f}", f"{row['second']:.2f}", score(row["difference"]))
        table.add_row(plain(row["name"]), *scores, steps)
    console = stdout()
    console.print(table)
    for name in ("only_first", "only_second"):
        if found[name]:
            console.print(plain(f"{name.replace('_', ' in the ')} result: {', '.join(found[name])}"))
    if found["unlike"]:
        console.print(plain(f"compared although these differ: {', '.join(found['unlike'])}"))
