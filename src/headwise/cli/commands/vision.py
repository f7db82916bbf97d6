"""`headwise vision`: a small vision-language model to try image methods on, and what these are worth on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from headwise.cli.commands import COMMANDS
from headwise.cli.options import Fresh, Json, State
from headwise.cli.renamed import Command
from headwise.report.terminal import plain, stdout

app = typer.Typer(
    help="Leave image tokens out, steer to the image, decode against habit: judged on a small vision-language model.",
    no_args_is_help=True,
)
COMMANDS.add("vision", app)

Out = Annotated[Path | None, typer.Option(help="Its folder; by default in the user's cache.")]


def _folder(given: Path | None) -> Path:
    from headwise.caches import cache_folder

    return cache_folder() / "vlm" if given is None else given


@app.command("train", cls=Command)
def train(
    out: Out = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew.")] = False,
    seeing: Annotated[int, typer.Option(help="Updates of the image encoder alone.")] = 500,
    answering: Annotated[int, typer.Option(help="Updates of the whole model after these.")] = 1250,
) -> None:
    """Train the small vision-language model on synthetic pictures; a stopped training goes on where it was."""
    from headwise.cli.given import check_least
    from headwise.cli.progress import Watcher
    from headwise.models.vlm.training import CHECKPOINT, Schedule
    from headwise.models.vlm.training import train as trained
    from headwise.seams.transformers.load import quiet

    check_least(seeing=(seeing, 1), answering=(answering, 1))
    quiet()
    folder = _folder(out)
    if fresh:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    with Watcher() as watch:
        watch.resume = "the same command goes on"
        trained(Schedule(seeing=seeing, answering=answering), folder, watch)
        watch.finished(f"wrote {folder}")


@app.command("router", cls=Command)
def router(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    model: Out = None,
    questions: Annotated[int, typer.Option(help="Questions that it is trained on.")] = 200,
) -> None:
    """Train the router of `dyvte`, on questions that judging does not use."""
    from headwise.cli.given import check_least, check_outputs
    from headwise.cli.progress import Watcher
    from headwise.seams.transformers.load import quiet
    from headwise.vision.router import make

    check_outputs(file=file)
    check_least(questions=(questions, 2))
    quiet()
    loaded = _loaded(model)
    with Watcher() as watch:
        positive = make(loaded, file, questions, watch)
        watch.finished(f"wrote {file}; the image may leave before {positive:.0%} of the layers that were tried")


@app.command("judge", cls=Command)
def judge(
    model: Out = None,
    questions: Annotated[int, typer.Option(help="Questions a task; 64 and more tell arms apart.")] = 96,
    router: Annotated[Path | None, typer.Option(help="A router of `headwise vision router`, for dyvte.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file as well.")] = None,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """What pruners, edits and decoders are worth on the small model, beside their controls. Finished arms are kept, and
    the same command goes on from them."""
    from rich.table import Table

    from headwise.bench.provenance import machine
    from headwise.cli.given import check_least, check_outputs
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.files import write_json
    from headwise.report.vision import COLUMNS, table
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import quiet
    from headwise.vision.judge import SETS, judged, whole

    check_least(questions=(questions, 2))
    check_outputs(out=out)
    quiet()
    loaded = _loaded(model)
    fingerprint = attach(loaded).fingerprint
    facts = [fingerprint, questions, str(router)]
    with Watcher() as watch, unfinished("vision", facts, watch, state=state, fresh=fresh) as folder:
        found = {name: judged(loaded, name, questions, router, folder, watch) for name in SETS}
    told = {
        "model": fingerprint,
        "questions": questions,
        "machine": machine(),
        "whole": whole(loaded, questions),
        **found,
    }
    if out is not None:
        write_json(out, told)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    for name in SETS:
        shown = Table(*COLUMNS[name])
        for row in table(told, name):
            shown.add_row(*map(plain, row))
        stdout().print(shown)


@app.command("pruners", cls=Command)
def listed(as_json: Json = False) -> None:
    """List the pruners: which image tokens they leave out, and of which paper."""
    from dataclasses import asdict

    from rich.table import Table

    from headwise.pruners import PRUNERS

    known = {name: asdict(cls.card) for name, cls in PRUNERS.all().items()}
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    shown = Table("pruner", "what it does", "paper")
    for name, card in known.items():
        shown.add_row(name, plain(card["title"]), plain(card["paper"]))
    stdout().print(shown)


def _loaded(given: Path | None):  # type: ignore[no-untyped-def]
    """The trained model of a folder; refused where there is none."""
    from headwise.errors import FileError
    from headwise.models.vlm.network import load

    folder = _folder(given)
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder} holds no trained model; run `headwise vision train` first, or give --model FOLDER")
    return load(folder)
