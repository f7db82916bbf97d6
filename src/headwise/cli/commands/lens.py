"""`headwise lens`: what the heads of a model do with a text, as a table and as a page to look around in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Json, Model, Seed
from headwise.report.terminal import stdout, visible

if TYPE_CHECKING:
    from headwise.lens import Head, Measured, Scene

SHOWN = 2  # heads of each lens, those of the highest figures, that are looked at from near where none are named
TABLED = 6  # heads of each lens in the table
LENGTH, FACTS = 512, 4  # tokens of the documents with facts that are recalled, and what is planted in them
DOCUMENTS = 2
MOST_BYTES = 4  # of a character, and so tokens that spell one


@command("lens")
def lens(
    model: Model = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A text to look at; a document with planted facts by default.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(help="A lens to take; may be given often. All quick ones by default."),
    ] = None,
    heads: Annotated[
        str, typer.Option(help="Heads to look at from near, as LAYER.HEAD with commas between, like 18.6,17.3.")
    ] = "",
    out: Annotated[Path, typer.Option(help="The .html file to write.")] = Path("lens.html"),
    as_json: Json = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Look inside a model: what each head looks at, what it writes, and what breaks without it.

    The page is one file that needs nothing else. Its grid of heads is coloured by any of the lenses, and a head opens
    at a click: its pattern over the text, as a whole and token by token, its vocabulary, and the tokens that are
    foretold worse without it.
    """
    from headwise.cli.given import check_outputs, check_place
    from headwise.cli.progress import Watcher
    from headwise.lens import measured, usual
    from headwise.lenses import LENSES
    from headwise.report.lens_page import write_page
    from headwise.seams.transformers.beside import check_heads

    check_outputs(out=out)
    check_place(dtype, device)
    names = list(dict.fromkeys(measure)) if measure else usual()
    for name in names:
        LENSES.get(name)
    asked = parse_heads(heads)
    with Watcher() as watch:
        watch("loading the model")
        scene, tokenizer = _scene(model, prompt_file, seed, (dtype, device))
        check_heads(scene.subject.geometry, asked)
        found = measured(scene, names, watch)
        near = asked or best_heads(found)
        result = _facts(scene, found, model) | _near(scene, near, tokenizer, watch)
        write_page(result, _patterns(scene, near), out)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    _print(found)
    typer.echo(visible(f"wrote {out}"))


def parse_heads(text: str) -> list[Head]:
    """`"18.6,17.3"` -> [(18, 6), (17, 3)]."""
    from headwise.errors import HeadwiseError

    found = []
    for word in filter(None, text.split(",")):
        layer, dot, head = word.strip().partition(".")
        if not (dot and layer.isascii() and layer.isdigit() and head.isascii() and head.isdigit()):
            raise HeadwiseError(f"--heads {word}: a head is LAYER.HEAD, counted from 0; write it like 18.6,17.3")
        found.append((int(layer), int(head)))
    return list(dict.fromkeys(found))


def best_heads(found: Measured) -> list[Head]:
    """The heads of the highest figures of each lens."""
    best: dict[Head, None] = {}
    for figures in found.figures.values():
        order = figures.nan_to_num(-float("inf")).flatten().argsort(descending=True, stable=True)[:SHOWN]
        best |= {(int(place) // figures.shape[1], int(place) % figures.shape[1]): None for place in order}
    return list(best)


def _scene(model: str | None, prompt_file: Path | None, seed: int, place: tuple[str, str]) -> tuple[Scene, Any]:
    """The model, its text and what it is asked to recall; and its tokenizer. place: element type and device."""
    import torch

    from headwise.bench.job import encode, recalls
    from headwise.calibrate.subject import ModelSubject
    from headwise.cli.given import place_of
    from headwise.errors import FileError
    from headwise.files import read_text
    from headwise.lens import Scene, Text
    from headwise.seams.transformers.load import load_pair, quiet
    from headwise.tasks.needle import NiahMultiquery

    quiet()
    told = None if prompt_file is None else read_text(prompt_file)
    if told is not None and not told.strip():
        raise FileError(f"{prompt_file} holds no text; give a file with some")
    tokenizer, loaded = load_pair(place_of(model), *place)
    planted = NiahMultiquery(keys=FACTS, queries=FACTS, split="tune")
    documents = recalls(tokenizer, planted, LENGTH, DOCUMENTS, seed)
    ids = documents[0].with_answers()[0] if told is None else encode(tokenizer, told, start=True)
    delimits = [not any(c.isalnum() for c in tokenizer.decode([token])) for token in ids[0].tolist()]
    return Scene(ModelSubject(loaded), Text(ids, torch.tensor(delimits)), documents, seed), tokenizer


def _facts(scene: Scene, found: Measured, model: str | None) -> dict[str, Any]:
    """What was measured, as JSON data: figures by lens, layer and head, null for heads that a layer does not have."""
    from dataclasses import asdict

    from headwise.lenses import LENSES

    return {
        "model": model or "embedded",
        "fingerprint": scene.subject.fingerprint,
        "heads": [layer.query_heads for layer in scene.subject.geometry.layers],
        "tokens": scene.text.tokens,
        "lenses": {name: asdict(LENSES.get(name).card) for name in found.figures},
        "refused": found.refused,
        "figures": {
            name: [[None if x != x else x for x in row] for row in one.tolist()] for name, one in found.figures.items()
        },
    }


def _near(scene: Scene, heads: list[Head], tokenizer: Any, watch: Any) -> dict[str, Any]:
    """What these heads write and what breaks without them, and the text by token."""
    from headwise.errors import HeadwiseError
    from headwise.lens.closeup import broken, writings

    watch("reading what heads write")
    told: dict[str, Any] = {"text": spelled(tokenizer, scene.text.ids[0].tolist())}
    try:
        told["writes"] = writings(scene, heads, lambda token: tokenizer.decode([token]))
        told["broken"] = broken(scene, heads, lambda done, total: watch("leaving heads out", done, total))
    except HeadwiseError as error:  # a model whose heads cannot be told apart behind attention
        told |= {"writes": {}, "broken": {}, "refused_near": str(error)}
    return told


def spelled(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the text; of a character that several tokens spell, all but the last add nothing."""
    pieces: list[str] = []
    first = 0
    for place in range(len(ids)):
        before = tokenizer.decode(ids[max(0, first - 1) : first])  # some decoders drop a first space
        piece = tokenizer.decode(ids[max(0, first - 1) : place + 1])[len(before) :]
        if piece.endswith("\ufffd") and place - first < MOST_BYTES - 1 and place < len(ids) - 1:
            pieces.append("")
        else:
            pieces.append(piece)
            first = place + 1
    return pieces


def _patterns(scene: Scene, heads: list[Head]) -> dict[str, Any]:
    from dataclasses import asdict

    from headwise.lens.closeup import patterns
    from headwise.lens.look import tile_size

    return asdict(patterns(scene, heads)) | {"tile": tile_size(scene.text.tokens)}


def _print(found: Measured) -> None:
    from rich.table import Table

    from headwise.lenses import LENSES

    table = Table("lens", "heads of the highest figures", "a head of a high figure")
    for name, figures in found.figures.items():
        order = figures.nan_to_num(-float("inf")).flatten().argsort(descending=True, stable=True)[:TABLED].tolist()
        best = "  ".join(f"{i // figures.shape[1]}.{i % figures.shape[1]} {figures.flatten()[i]:.3g}" for i in order)
        table.add_row(name, best, LENSES.get(name).card.tells)
    stdout().print(table)
    for name, why in found.refused.items():
        typer.echo(visible(f"{name} was not taken: {why}"))
