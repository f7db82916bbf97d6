"""`headwise matrix`: which models of the installed transformers run under headwise as they do alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.cli.options import Fresh, Json, State
from headwise.report.terminal import plain, stdout


@command("matrix")
def matrix(
    sort: Annotated[
        list[str] | None, typer.Option(help="Only these sorts: causal, vision or encoder-decoder; may repeat.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only model types that hold this word; may repeat.")] = None,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Ask a tiny random model of every class in transformers for a prompt in one piece, in two, and in a padded batch,
    under headwise and alone.

    Each is identical (logits within 1e-4), refused for a reason, differs, crashes, or is not built. Exit code 1 when
    one differs or crashes.
    """
    from headwise.bench import zoo
    from headwise.cli.given import check_outputs
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.errors import HeadwiseError, did_you_mean
    from headwise.files import write_text
    from headwise.seams.transformers.load import quiet
    from headwise.seams.transformers.zoo import Sort

    check_outputs(out=out)
    known = get_args(Sort)
    if unknown := [one for one in sort or () if one not in known]:
        raise HeadwiseError(f"--sort {unknown[0]}: {did_you_mean(unknown[0], known)}")
    listed = zoo.chosen([one for one in known if one in (sort or known)], only or ())
    if not listed:
        raise HeadwiseError(
            f"no model type of this transformers holds {' or '.join(only or ())}; give a part of its name"
        )
    quiet()
    facts = [[one.sort, one.model_type] for one in listed]
    with Watcher() as watch, unfinished("matrix", facts, watch, state=state, fresh=fresh) as folder:
        result = zoo.matrix(listed, folder, watch)
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        stdout().print(_table(result))
        for name, found in result["counts"].items():
            typer.echo(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in found.items()))
    wrong = [row["kind"] for row in result["rows"] if row["found"] in ("differs", "crash")]
    if wrong:
        typer.echo(f"not as they are alone, and not refused: {', '.join(wrong)}", err=True)
        raise typer.Exit(1)


def _table(result: dict[str, Any]) -> Table:
    table = Table("model type", "class", "is", "layers governed", "pass a state on", "why")
    for row in result["rows"]:
        layers = f"{row['governed']} of {row['layers']}" if row["layers"] else ""
        layers += ", form only" if row["by_itself"] else ""
        table.add_row(
            row["model_type"], row["kind"], row["found"], layers, str(row["passing"] or ""), plain(row["why"])
        )
    return table
