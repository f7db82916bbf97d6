"""`headwise faithful`: whether a decoder makes a model say what the passage says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.cli.options import Dtype, Fresh, Json, Model, Seed, State, Threads
from headwise.report.faithful import COLUMNS, cells
from headwise.report.terminal import plain, stdout, visible

USUAL = ("decore", "cad", "dola", "dagcd", "largepig", "layercake")


@command("faithful")
def faithful(
    model: Model = None,
    decode: Annotated[
        list[str] | None,
        typer.Option(help="A decoder, like 'decore(alpha=2.0)'; may be given often. All of them by default."),
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions of each kind.")] = 64,
    out: Annotated[Path | None, typer.Option(help="The JSON file of all answers to write.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    threads: Threads = None,
    dtype: Dtype = "auto",
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Ask a model about passages that say otherwise than the world, that do not say what is asked, and that say it in
    one of several places; under greedy decoding, and under decoders beside their controls."""
    from headwise.cli.given import check_least, check_outputs, check_place
    from headwise.decoders import decoder

    check_outputs(out=out)
    check_place(dtype, "cpu")
    check_least(questions=(questions, 1), threads=(threads, 1))
    sentences = list(dict.fromkeys(decode or USUAL))
    for sentence in sentences:
        decoder(sentence)
    result = _perform(model, sentences, (questions, seed, dtype, threads), state, fresh)
    if out is not None:
        from headwise.files import write_json

        write_json(out, result)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    stdout().print(table(result))
    if out is not None:
        typer.echo(visible(f"wrote {out}"))


def _perform(
    model: str | None, sentences: list[str], how: tuple[int, int, str, int | None], state: Path | None, fresh: bool
) -> dict[str, Any]:
    """Everything between the options and the JSON object."""
    import torch

    from headwise.bench.faithful.judge import judge
    from headwise.bench.provenance import machine, versions
    from headwise.cli.given import place_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.compiled.fast import fast
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_pair, quiet

    questions, seed, dtype, threads = how
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    with Watcher() as watch:
        watch(f"loading {place_of(model)}")
        tokenizer, loaded = load_pair(place_of(model), dtype, "cpu", False)
        fingerprint = attach(loaded).fingerprint
        watch.say(str(fast(loaded)))
        facts = [fingerprint, questions, seed, str(loaded.dtype)]
        with unfinished("faithful", facts, watch, state=state, fresh=fresh) as folder:
            found = judge(loaded, tokenizer, sentences, questions, seed=seed, folder=folder, watch=watch)
    asked = {"model": "embedded" if model is None else model, "model_fingerprint": fingerprint, "seed": seed}
    how_run = {"dtype": str(loaded.dtype).removeprefix("torch."), "machine": machine(), "versions": versions()}
    return {**asked, **how_run, **found}


def table(result: dict[str, Any]) -> Table:
    """The rows for people."""
    made = Table(*COLUMNS)
    for arm in result["arms"]:
        made.add_row(*map(plain, cells(arm)))
    return made
