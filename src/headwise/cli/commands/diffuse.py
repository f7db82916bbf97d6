"""`headwise diffuse`: what ways of sampling masked-diffusion language models get right, and by how many forwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Fresh, Json, Seed, State, Threads
from headwise.report.diffusion import COLUMNS, rows
from headwise.report.terminal import plain, stdout, visible


@command("diffuse")
def diffuse(
    text: Annotated[list[str] | None, typer.Option(help="sums or novel; may be given often. Both by default.")] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="A way by its name, beside the one that it is compared with; may be given often. All by default."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The recipe of the caches that answers are filled behind.")] = "",
    questions: Annotated[int, typer.Option(help="Held texts of each kind.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps by which a model that is not there yet is trained.")] = 1500,
    out: Annotated[Path | None, typer.Option(help="The JSON file of the result.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The .png file to draw.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    threads: Threads = None,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Train a small masked-diffusion language model for each kind of text, once, and let it fill answers: a token a
    look, several, by self-speculation, in blocks that end with a line, and left to right."""
    from headwise.bench.diffusion import BLOCK, chosen
    from headwise.cli.given import check_least, check_outputs
    from headwise.cli.state import check_state
    from headwise.files import write_bytes, write_json
    from headwise.models.diffusion_texts import TEXTS, texts
    from headwise.recipe import Recipe
    from headwise.report.diffusion import picture as drawn
    from headwise.report.pictures import as_png

    check_outputs(out=out, picture=picture)
    check_state(state)
    check_least(questions=(questions, 1), steps=(steps, 1), threads=(threads, 1))
    Recipe.parse(recipe)
    names = list(dict.fromkeys(text or TEXTS))
    for name in names:
        texts(name)
    chosen(way or (), 2 * BLOCK)
    result = _perform(names, (recipe, questions, way or [], steps, seed, threads), state, fresh)
    if out is not None:
        write_json(out, result)
    if picture is not None:
        write_bytes(picture, as_png(drawn(result)))
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    stdout().print(_table(result))
    for path in (out, picture):
        if path is not None:
            typer.echo(visible(f"wrote {path}"))


def _perform(
    names: list[str], how: tuple[str, int, list[str], int, int, int | None], state: Path | None, fresh: bool
) -> dict[str, Any]:
    """Everything between the options and the JSON object."""
    import torch

    from headwise.bench.diffusion import findings, judge
    from headwise.bench.provenance import machine, versions
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.findings import as_data
    from headwise.models.diffusion import Recipe, diffusion_host, folder_for
    from headwise.models.diffusion_texts import texts
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import quiet

    recipe, questions, ways, steps, seed, threads = how
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    found = []
    with Watcher() as watch:
        for name in names:
            asked = Recipe(text=name, steps=steps, seed=seed)
            watch.resume = f"the same command goes on ({folder_for(asked)})"
            model = diffusion_host(asked, watch)
            facts = [attach(model).fingerprint, recipe, questions]
            with unfinished("diffuse", facts, watch, state=state, fresh=fresh) as folder:
                found.append(judge(model, texts(name), recipe, (questions, ways), folder, watch))
    command = "headwise diffuse" + "".join(f" --text {name}" for name in names)
    command += "".join(f' --way "{name}"' for name in ways)
    command += (f' --recipe "{recipe}"' if recipe else "") + f" --questions {questions} --steps {steps}"
    told = ", ".join(f"{key} {value}" for key, value in machine().items())
    shown = [one for text in found for one in findings(text, command, told)]
    return {"command": command, "recipe": recipe, "steps": steps, "seed": seed, "machine": machine(),
            "versions": versions(), "texts": found, "findings": as_data(shown)}  # fmt: skip


def _table(result: dict[str, Any]) -> Any:
    """The rows for people."""
    from rich.table import Table

    made = Table(*COLUMNS)
    for row in rows(result):
        made.add_row(*map(plain, row))
    return made
