"""`headwise front`: every method on one host at shares of what dense attention takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.cli.options import Json, State
from headwise.report.terminal import plain, stdout

if TYPE_CHECKING:
    from headwise.claims.claim import Asked


@command("front")
def front(
    call: typer.Context,
    host: Annotated[str, typer.Argument(help="The host, such as smollm2_4k; see docs/claims.md.")],
    share: Annotated[str, typer.Option(help="Shares of what dense attention takes, commas between.")] = "0.5,0.25,0.1",
    only: Annotated[list[str] | None, typer.Option(help="Only methods whose name holds this word.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help="A plan file to add; may be given often.")] = None,
    asked: Annotated[
        list[str] | None, typer.Option(help="Only questions put so: after the eviction, before, or along; may repeat.")
    ] = None,
    documents: Annotated[int, typer.Option(help="Documents that are asked about.")] = 25,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    as_json: Json = False,
    state: State = None,
) -> None:
    """Compare every method on a host: dense attention's right answers that it keeps, and how it goes on with text.

    What is kept is held against bytes of cache, what is read against tokens read, patterns of prompts against the pairs
    that they compute; each recipe's number is fitted to the share.
    """
    from headwise.bench.provenance import machine, versions
    from headwise.caches import cache_folder
    from headwise.claims.front import entries, run
    from headwise.claims.hosts import HOSTS
    from headwise.claims.on_host import Runs
    from headwise.cli.given import check_least, check_outputs, command_line, several
    from headwise.cli.given import share as share_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state
    from headwise.errors import HeadwiseError
    from headwise.files import write_text

    check_outputs(out=out)
    check_state(state)
    check_least(documents=(documents, 1))
    ways = _ways(asked or [])
    found, listed = HOSTS.get(host), entries(several("--share", share, share_of), only or (), plan or (), ways)
    if not listed:
        raise HeadwiseError(
            f"no method holds {' or '.join(only or ['anything'])} and is asked {' or '.join(ways or ['so'])}; "
            "`headwise methods` lists them"
        )
    folder = state or cache_folder() / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    with Watcher() as watch:
        result = run(found, listed, documents, Runs(folder, watch))
    result = {"machine": machine(), "versions": versions(), "command": command_line(call)} | result
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        stdout().print(_table(result))


def _ways(given: list[str]) -> list[Asked]:
    """The ways of asking that were named; HeadwiseError where one is none."""
    from headwise.claims.claim import Asked
    from headwise.errors import HeadwiseError

    known = get_args(Asked)
    if unknown := [one for one in given if one not in known]:
        raise HeadwiseError(f"--asked {unknown[0]}: questions come {', '.join(known)}")
    return [one for one in known if one in given]


def _table(result: dict[str, Any]) -> Table:
    table = Table("arm", "share of", "share", "answers kept [95 %]", "nats", "KL", "same token")
    for one in result["rows"]:
        if "refused" in one:
            table.add_row(plain(one["arm"]), one["equal"], "", f"refused: {plain(one['refused'])}", "", "", "")
            continue
        mean, low, high = one["answers"]
        text = [f"{one['text'][name]:.3f}" if one["text"] else "" for name in ("nats", "kl", "top1")]
        kept = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        table.add_row(plain(one["sentence"]), one["equal"], f"{one['cost']:.3f}", kept, *text)
    return table
