"""`headwise theory`: what papers state of attention, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.cli.options import Fresh, Json, State
from headwise.report.terminal import plain, stdout, visible

if TYPE_CHECKING:
    from headwise.cli.progress import Watcher
    from headwise.experiments import Experiment


@command("theory")
def theory(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments with their knobs, like 'head_size(tokens=16)'; none lists them.", metavar="[NAME]..."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all experiments.")] = False,
    picture: Annotated[Path | None, typer.Option(help="The .png file to draw; of one experiment.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The JSON file of runs to write; those of other experiments stay.")
    ] = None,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Run statements of papers as experiments of seconds: each measures what is stated, beside a control for which
    it must
    not hold, over several seeds."""
    from headwise.cli.given import check_outputs
    from headwise.cli.progress import Watcher
    from headwise.errors import HeadwiseError
    from headwise.experiments import EXPERIMENTS, experiment, joined, shown_runs
    from headwise.files import write_bytes, write_json
    from headwise.report.pictures import as_png
    from headwise.report.theory_picture import picture as drawn

    check_outputs(picture=picture, out=out)
    if names and every:
        raise HeadwiseError(f"--all runs every experiment, and {names[0]} is named beside it; leave one of them out")
    chosen = [experiment(name) for name in (EXPERIMENTS.all() if every else names or [])]
    if picture is not None and len(chosen) != 1:
        raise HeadwiseError(f"--picture draws one experiment, and {len(chosen)} are named; name one")
    if not chosen:
        _list(as_json)
        return
    with Watcher() as watch:
        result = {**_provenance(), "runs": [_run(one, watch, state, fresh) for one in chosen]}
    if out is not None:
        write_json(out, joined(kept, result) if (kept := shown_runs(out)) else result)
    if picture is not None:
        run = result["runs"][0]
        write_bytes(picture, as_png(drawn(run, run["panels"])))
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for run in result["runs"]:
        _print(run)
    if picture is not None:
        typer.echo(visible(f"wrote {picture}"))


def _provenance() -> dict[str, Any]:
    from headwise.bench.provenance import machine, versions

    return {"machine": machine(), "versions": versions()}


def _run(one: Experiment, watch: Watcher, state: Path | None, fresh: bool) -> dict[str, Any]:
    """Its figures, verdict and panels; a seed that was finished by an earlier call is taken over."""
    from dataclasses import asdict
    from time import perf_counter

    from headwise.cli.state import unfinished
    from headwise.kept import once

    with unfinished("theory", {"sentence": str(one)}, watch, state=state, fresh=fresh) as folder:
        begun = perf_counter()
        figures = one.run(
            lambda done, total: watch(f"running {one}", done, total), lambda key, make: once(folder, key, make)
        )
        seconds = perf_counter() - begun
    verdict = one.check(figures)
    watch.finished(f"{one}: {verdict['state']}")
    panels = {title: asdict(panel) for title, panel in one.panels.items()}
    return {**figures, "verdict": verdict, "panels": panels, "seconds": round(seconds, 1)}


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from headwise.experiments import EXPERIMENTS, shown_runs

    came_to = {run.experiment: run.verdict["state"] for run in known.runs} if (known := shown_runs()) else {}
    listed = [
        {"name": name, "state": came_to.get(name, "not run"), **asdict(one.card)}
        for name, one in EXPERIMENTS.all().items()
    ]
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
        return
    table = Table("experiment", "rows", "came to", "seconds", "statement")
    for facts in listed:
        rows = ", ".join(map(str, facts["systems"]))
        table.add_row(facts["name"], rows, facts["state"], str(facts["seconds"]), plain(facts["statement"]))
    stdout().print(table)
    typer.echo("run one: headwise theory NAME --picture NAME.png; its knobs in brackets: 'NAME(seeds=10)'")


def _print(run: dict[str, Any]) -> None:
    table = Table(
        "statement", "limit", "found [95 %]", "control", "control found [95 %]", "state", title=plain(run["sentence"])
    )
    for part in run["verdict"]["parts"]:
        table.add_row(plain(part["says"]), limit(part), told(part["found"]), plain(part["without"]),
                      told(part["control_found"]), part["state"])  # fmt: skip
    stdout().print(table)
    typer.echo(f"{run['experiment']}: {run['verdict']['state']}")


def limit(part: dict[str, Any]) -> str:
    """`below 0.1`."""
    return f"below {part['below']:g}" if part["below"] is not None else f"above {part['above']:g}"


def told(found: dict[str, float]) -> str:
    """`0.05 [0.04, 0.06]`."""
    return f"{found['mean']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
