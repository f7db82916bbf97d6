"""`headwise claims`: what is claimed of methods, measured anew against controls that cost the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.cli.options import Fresh, Json, State
from headwise.report.terminal import plain, stdout

if TYPE_CHECKING:
    from headwise.claims.claim import Claim


@command("claims")
def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Rows or words of recipes; all claims by default.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="A host, may be given often; all by default.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Only say what is claimed.")] = False,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Measure claims on their hosts, each method beside random, sinks and recent tokens, the nearest simpler method and
    itself without its idea, all at the same measured cost."""
    from headwise.caches import cache_folder
    from headwise.cli.given import check_outputs
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state
    from headwise.files import write_text
    from headwise.kept import forget, kept_keys

    check_outputs(out=out)
    check_state(state)
    chosen = _chosen(names or [])
    if listed:
        stdout().print(_listed(chosen))
        return
    folder = state or cache_folder() / "claims"
    if fresh and folder.exists():
        forget(folder, kept_keys(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with Watcher() as watch:
        result = _run(chosen, folder, watch, host or [])
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        stdout().print(_table(result))


def _chosen(names: list[str]) -> list[Claim]:
    """The claims of these rows, or whose recipes hold these words; HeadwiseError where one names none."""
    from headwise.claims.claim import CLAIMS
    from headwise.errors import HeadwiseError

    known = list(CLAIMS.all().values())
    for name in names:
        if not any(_is_named(one, name) for one in known):
            raise HeadwiseError(f"no claim is of row or method '{name}'; `headwise claims --list` shows all")
    return sorted((one for one in known if not names or any(_is_named(one, n) for n in names)), key=lambda c: c.row)


def _is_named(one: Claim, name: str) -> bool:
    return name == str(one.row) if name.isdigit() else name in one.method


def _run(chosen: list[Claim], folder: Path, watch: Any, hosts: list[str]) -> dict[str, Any]:
    from headwise.bench.provenance import machine, versions
    from headwise.claims.on_host import Runs
    from headwise.claims.run import run

    runs = Runs(folder, watch)
    return {"machine": machine(), "versions": versions()} | run(chosen, runs, hosts)


def _listed(chosen: list[Claim]) -> Table:
    table = Table("row", "method", "says", "hosts", "equal", "asked")
    for one in chosen:
        table.add_row(str(one.row), plain(one.method), plain(one.says), ", ".join(one.hosts), one.equal, one.asked)
    return table


def _table(result: dict[str, Any]) -> Table:
    """An arm a line, claim by claim and host by host; ahead: the method's answers less the arm's, with its interval."""
    table = Table("claim", "host", "arm", "recipe", "answers", "cost", "ahead [95 %]")
    for one in result["claims"]:
        claim = [f"{one['row']} {one['state']}"]
        for name, found in one["results"].items():
            if "refused" in found:
                table.add_row(*claim, name, "refused", plain(f"{one['method']}: {found['refused']}"))
            else:
                answers = f"{found['share']:.2f} of {found['asks']}"
                table.add_row(*claim, name, "method", plain(found["sentence"]), answers, f"{found['cost']:.3f}", "")
                for kind, control in found["controls"].items():
                    ahead = "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**control["difference"])
                    cells = f"{control['share']:.2f}", f"{control['cost']:.3f}", plain(ahead)
                    table.add_row("", "", kind, plain(control["sentence"]), *cells)
            claim = [""]
        table.add_section()
    return table
