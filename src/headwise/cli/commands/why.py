"""`headwise why`: which tokens of a prompt made the model say what it says next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Json, Model, Seed
from headwise.report.terminal import plain, stdout, visible

if TYPE_CHECKING:
    from headwise.lens.explained import Explained
    from headwise.lens.prompt import Prompt

USUAL = ("attention", "rollout", "gradient", "integrated")  # those that take no forward for each token
TABLED = 8  # tokens of each explanation in the table
QUESTION = "The grass is green and the sky is blue. The sky is"


@command("why")
def why(
    model: Model = None,
    prompt_file: Annotated[Path | None, typer.Option(help="The prompt; a sentence by default.")] = None,
    says: Annotated[
        str, typer.Option(help="What is explained, its first token; what the model says next by default.")
    ] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(help="An explanation; may be given often. All quick ones by default; 'all' takes every one."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the explanations and stop.")] = False,
    out: Annotated[Path | None, typer.Option(help="The .html file to write: the prompt, coloured by each.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Say which tokens of a prompt counted for the next one, by several explanations.

    Beside each stands what becomes of the model by it: how far the token's probability falls as the tokens that it
    names are made blank, and how much is left of it by these alone. Explanations that agree need not be right.
    """
    from headwise.cli.given import check_outputs, check_place
    from headwise.cli.progress import Watcher
    from headwise.explanations import EXPLANATIONS
    from headwise.lens.explained import explained
    from headwise.report.explained_page import write_page

    if listed:
        _list(as_json)
        return
    check_outputs(out=out)
    check_place(dtype, device)
    names = list(EXPLANATIONS.all()) if by == ["all"] else list(dict.fromkeys(by)) if by else list(USUAL)
    for name in names:
        EXPLANATIONS.get(name)
    with Watcher() as watch:
        watch("loading the model")
        prompt, tokenizer = _prompt(model, prompt_file, says, seed, (dtype, device))
        found = explained(prompt, names, watch)
        watch("taking away what they name")
        told = _facts(prompt, found, tokenizer, model)
    if out is not None:
        write_page(told, out)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    _print(told)
    if out is not None:
        typer.echo(visible(f"wrote {out}"))


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from rich.table import Table

    from headwise.explanations import EXPLANATIONS

    known = {name: asdict(one.card) for name, one in EXPLANATIONS.all().items()}
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    table = Table("explanation", "a token of a high figure", "takes", "paper")
    for name, card in known.items():
        table.add_row(name, plain(card["tells"]), plain(card["takes"]), plain(card["paper"]))
    stdout().print(table)


def _prompt(
    model: str | None, prompt_file: Path | None, says: str, seed: int, place: tuple[str, str]
) -> tuple[Prompt, Any]:
    """The prompt with what is explained of it, and the tokenizer. place: element type and device."""
    from headwise.bench.job import encode
    from headwise.calibrate.subject import ModelSubject
    from headwise.cli.given import place_of
    from headwise.errors import FileError, HeadwiseError
    from headwise.files import read_text
    from headwise.lens.prompt import Prompt
    from headwise.seams.transformers.load import load_pair, quiet

    quiet()
    text = QUESTION if prompt_file is None else read_text(prompt_file)
    if not text.strip():
        raise FileError(f"{prompt_file} holds no text; give a file with some")
    tokenizer, loaded = load_pair(place_of(model), *place)
    ids = encode(tokenizer, text, start=True)
    blank = int(encode(tokenizer, "\n", start=False)[0, -1])
    prompt = Prompt(ModelSubject(loaded), ids, 0, blank, seed)
    if says:
        given = encode(tokenizer, says, start=False)
        if not given.shape[1]:
            raise HeadwiseError(f"--says {says!r} is no token; give a word, with its space before it")
        target = int(given[0, 0])
    else:
        target = int(prompt.logits(ids)[0].argmax())
    return Prompt(prompt.subject, ids, target, blank, seed), tokenizer


def _facts(prompt: Prompt, found: Explained, tokenizer: Any, model: str | None) -> dict[str, Any]:
    """All that is told, as JSON data."""
    from dataclasses import asdict

    from headwise.cli.commands.lens import spelled
    from headwise.explanations import EXPLANATIONS
    from headwise.lens.explained import agreement, comprehensiveness, sufficiency

    taus = agreement(found.figures)
    return {
        "model": model or "embedded",
        "text": spelled(tokenizer, prompt.ids[0].tolist()),
        "says": tokenizer.decode([prompt.target]),
        "probability": float(prompt.likelihood(prompt.ids).exp()),
        "explanations": {name: asdict(EXPLANATIONS.get(name).card) for name in found.figures},
        "figures": {name: one.tolist() for name, one in found.figures.items()},
        "falls": {name: comprehensiveness(prompt, one) for name, one in found.figures.items()},
        "left": {name: sufficiency(prompt, one) for name, one in found.figures.items()},
        "agreement": {one: {x: None if tau != tau else tau for x, tau in row.items()} for one, row in taus.items()},
        "refused": found.refused,
    }


def _print(told: dict[str, Any]) -> None:
    from rich.table import Table

    typer.echo(visible(f"the model says {told['says']!r} next, with a probability of {told['probability']:.3f}"))
    table = Table("explanation", "tokens of the highest figures", "falls without", "left by these alone")
    for name, figures in told["figures"].items():
        order = sorted(range(len(figures)), key=lambda place: -figures[place])[:TABLED]
        best = "  ".join(f"{place}:{told['text'][place]!r} {figures[place]:.2g}" for place in order)
        table.add_row(name, plain(best), f"{100 * told['falls'][name]:.0f} %", f"{100 * told['left'][name]:.0f} %")
    stdout().print(table)
    names = list(told["figures"])
    if len(names) > 1:
        taus = Table("Kendall's tau", *names)
        for one in names:
            row = [told["agreement"][one][other] for other in names]
            taus.add_row(one, *("-" if tau is None else f"{tau:.2f}" for tau in row))
        stdout().print(taus)
    for name, why in told["refused"].items():
        typer.echo(visible(f"{name} was not taken: {why}"))
