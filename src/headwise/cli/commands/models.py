"""`headwise models`: which pretrained models can be fetched and which are here; `headwise models get` fetches one."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from headwise.cli.commands import COMMANDS
from headwise.cli.options import Json
from headwise.cli.renamed import Command
from headwise.report.terminal import plain, stdout

app = typer.Typer(
    help="List the pretrained models that can be fetched and then named like a path, and which of them are here.",
    invoke_without_command=True,
)
COMMANDS.add("models", app)


def facts_of(name: str) -> dict[str, Any]:
    """A model as plain JSON data."""
    from headwise.pretrained import PRETRAINED, folder_of, is_here

    one, folder = PRETRAINED[name], folder_of(name)
    here = is_here(name)
    return {
        "name": name,
        "title": one.title,
        "licence": one.licence,
        "packages": [package for package, _ in one.parts],
        "download_bytes": one.download,
        "held_bytes": sum(file.stat().st_size for file in folder.iterdir()) if here else one.held,
        "here": here,
        "folder": str(folder),
    }


@app.callback()
def models(call: typer.Context, as_json: Json = False) -> None:
    """List the pretrained models that can be fetched and then named like a path, and which of them are here."""
    from headwise.pretrained import PRETRAINED
    from headwise.shapes import format_bytes

    if call.invoked_subcommand is not None:
        return
    listed = [facts_of(name) for name in PRETRAINED]
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
        return
    table = Table("name", "model", "licence", "download", "on disk", "here")
    for one in listed:
        sizes = (format_bytes(one["download_bytes"]), format_bytes(one["held_bytes"]))
        here = one["folder"] if one["here"] else f"no: headwise models get {one['name']}"
        table.add_row(one["name"], plain(one["title"]), one["licence"], *sizes, plain(here))
    stdout().print(table)


@app.command("get", cls=Command)
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One or more names of `headwise models`.")],
) -> None:
    """Download pretrained models, check them, and convert them to bfloat16 in the user's caches.

    Needs `pip install 'headwise[real]'`. The terms of each are shown before anything is downloaded.
    """
    from headwise.cli.progress import Watcher
    from headwise.models.fetch import fetch
    from headwise.pretrained import PRETRAINED, folder_of, is_here
    from headwise.rooms import among
    from headwise.seams.transformers.load import quiet
    from headwise.shapes import format_bytes

    for name in names:
        among(PRETRAINED, name, "pretrained model", "headwise models")
    quiet()
    with Watcher() as watch:
        watch.resume = "the same command goes on with what was downloaded"
        for name in dict.fromkeys(names):
            one = PRETRAINED[name]
            if is_here(name):
                watch.say(f"{name} is here already: {folder_of(name)} (remove that folder to have it fetched again)")
                continue
            watch.say(f"{name}: {one.title}; {format_bytes(one.download)} to download; licence: {one.licence}")
            if one.terms:
                watch.say(one.terms)
            watch.say(f"{name} is here now: {fetch(name, watch)}")
