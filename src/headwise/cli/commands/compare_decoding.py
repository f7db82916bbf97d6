"""`headwise compare-decoding`: the usual ways to choose tokens on a task with one answer and on one with many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Dtype, Fresh, Json, Model, Seed, State, Threads
from headwise.report.decoding import COLUMNS, remark, rows
from headwise.report.terminal import plain, stdout, visible


@command("compare-decoding")
def compare_decoding(
    model: Model = None,
    questions: Annotated[int, typer.Option(help="Prompts of each task.")] = 64,
    out: Annotated[Path | None, typer.Option(help="The JSON file of the result.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The .png file to draw.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    threads: Threads = None,
    dtype: Dtype = "auto",
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Let a model look up records and go on with a novel, by beams, searches, contrasts and samplings: how many answers
    are right, and how near texts are to the human's in surprise and diversity."""
    from headwise.cli.given import check_least, check_outputs, check_place
    from headwise.cli.state import check_state
    from headwise.files import write_bytes, write_json
    from headwise.report.decoding import picture as drawn
    from headwise.report.pictures import as_png

    check_outputs(out=out, picture=picture)
    check_place(dtype, "cpu")
    check_state(state)
    check_least(questions=(questions, 1), threads=(threads, 1))
    result = _perform(model, (questions, seed, dtype, threads), state, fresh)
    if out is not None:
        write_json(out, result)
    if picture is not None:
        write_bytes(picture, as_png(drawn([result])))
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    stdout().print(_table(result))
    typer.echo(remark(result))
    for path in (out, picture):
        if path is not None:
            typer.echo(visible(f"wrote {path}"))


def _perform(
    model: str | None, how: tuple[int, int, str, int | None], state: Path | None, fresh: bool
) -> dict[str, Any]:
    """Everything between the options and the JSON object."""
    import torch

    from headwise.bench.decoding import findings, judge
    from headwise.bench.provenance import machine, versions
    from headwise.cli.given import place_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.findings import as_data
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_pair, quiet

    questions, seed, dtype, threads = how
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    with Watcher() as watch:
        watch(f"loading {place_of(model)}")
        tokenizer, loaded = load_pair(place_of(model), dtype, "cpu", False)
        facts = [attach(loaded).fingerprint, questions, seed, str(loaded.dtype)]
        with unfinished("compare-decoding", facts, watch, state=state, fresh=fresh) as folder:
            found = judge(loaded, tokenizer, questions, seed=seed, folder=folder, watch=watch)
    name = "embedded" if model is None else model
    command = "headwise compare-decoding" + ("" if model is None else f" {model}") + f" --questions {questions}"
    told = ", ".join(f"{key} {value}" for key, value in machine().items())
    return {"model": name, "command": command, "seed": seed, "dtype": str(loaded.dtype).removeprefix("torch."),
            "machine": machine(), "versions": versions(), **found,
            "findings": as_data(findings(found, name, command, told))}  # fmt: skip


def _table(result: dict[str, Any]) -> Any:
    """The rows for people."""
    from rich.table import Table

    made = Table(*COLUMNS)
    for row in rows(result):
        made.add_row(*map(plain, row))
    return made
