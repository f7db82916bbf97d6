"""`headwise lens`: what the heads of a model do with a text, as a table and as a page to look around in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Json, Model, Seed
from headwise.report.terminal import stdout, visible

if TYPE_CHECKING:
    import torch

    from headwise.lens import Head, Measured, Scene
    from headwise.plan import Plan
    from headwise.recipe import Recipe

SHOWN = 2  # heads of each lens, those of the highest figures, that are looked at from near where none are named
TABLED = 6  # heads of each lens in the table
LENGTH, FACTS = 512, 4  # tokens of the documents with facts that are recalled, and what is planted in them
DOCUMENTS = 2
MOST_BYTES = 4  # of a character, and so tokens that spell one


PromptFile = Annotated[Path | None, typer.Option(help="A text to look at; a document with planted facts by default.")]
SourceFile = Annotated[Path | None, typer.Option(help="Of an encoder-decoder: the text that its encoder reads.")]
TargetFile = Annotated[Path | None, typer.Option(help="Of an encoder-decoder: the text that its decoder writes.")]
Image = Annotated[Path | None, typer.Option(help="Of an image encoder, such as a ViT: the picture that it reads.")]
Measures = Annotated[list[str] | None, typer.Option(help="A lens to take, once or often. All quick ones by default.")]
Heads = Annotated[
    str, typer.Option(help="Heads to look at from near, as LAYER.HEAD with commas between, like 18.6,17.3.")
]
Followed = Annotated[
    str, typer.Option(help="A recipe or plan file: what it takes from each head, and what is then foretold worse.")
]
BesidePrompt = Annotated[Path | None, typer.Option(help="Another text to look at; the page compares both.")]
BesideModel = Annotated[str | None, typer.Option(help="Another model to look into; the page compares both.")]
Beside = Annotated[
    Path | None, typer.Option(help="An earlier look into this model, from --save; the page compares both.")
]


@command("lens")
def lens(
    model: Model = None,
    prompt_file: PromptFile = None,
    source_file: SourceFile = None,
    target_file: TargetFile = None,
    image: Image = None,
    measure: Measures = None,
    heads: Heads = "",
    beside_prompt: BesidePrompt = None,
    beside_model: BesideModel = None,
    plan: Followed = "",
    beside: Beside = None,
    out: Annotated[Path, typer.Option(help="The .html file to write.")] = Path("lens.html"),
    save: Annotated[Path | None, typer.Option(help="The .safetensors file to write what was found to.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Look inside a model: what each head looks at, what it writes, and what breaks without it.

    The page is one file that needs nothing else. Its grid of heads is coloured by any of the lenses, and a head opens
    at a click: its pattern over the text, as a whole and token by token, its vocabulary, and the tokens that are
    foretold worse without it. Encoders read --prompt-file, encoder-decoders --source-file and --target-file, image
    encoders --image; of these, attention is looked at.
    """
    from headwise.cli.given import check_outputs, check_place, check_recipe_or_plan, place_of, place_of_any
    from headwise.cli.host_lens import HostAsked, host_asked, refuse_others, tell_of_host
    from headwise.cli.progress import Watcher
    from headwise.errors import HeadwiseError
    from headwise.report.lens_file import read_look, write_look
    from headwise.report.lens_page import write_page

    check_outputs(out=out, save=save)
    check_place(dtype, device)
    given = {"--prompt-file": prompt_file, "--source-file": source_file, "--target-file": target_file, "--image": image}
    place = (place_of_any(model), model or "embedded")
    if (kind := host_asked(place, given)) is not None:
        other = {"--beside": beside, "--beside-prompt": beside_prompt, "--beside-model": beside_model, "--save": save}
        refuse_others(kind, {"--plan": plan, **other})
        tell_of_host(HostAsked(*place, kind, given, measure, heads, seed, dtype, device), out, as_json)
        return
    names, asked = lens_names(measure), parse_heads(heads)
    compared = beside_prompt is not None or beside_model is not None
    if sum((bool(plan), compared, beside is not None)) > 1:
        raise HeadwiseError("a page compares one thing; give --plan, --beside, or --beside-prompt and --beside-model")
    followed = check_recipe_or_plan(plan, str(place_of(model))) if plan else None
    sides = [(model, prompt_file)] + [(beside_model or model, beside_prompt or prompt_file)] * compared
    with Watcher() as watch:
        watch("loading the model")
        views = opened(sides, seed, (dtype, device))
        earlier = [] if beside is None else [read_look(beside, views[0].scene.subject.fingerprint, views[0].model)]
        under = {} if followed is None else _under_plan(views[0], followed, plan, watch)
        results, patterns = looked(views, names, asked, watch)
        results[0] |= under
        if save is not None:
            write_look(save, (results[0], patterns[0]))
        looks = [*zip(results, patterns, strict=True), *earlier]
        write_page([result for result, _ in looks], [drawn for _, drawn in looks], out)
    _tell([result for result, _ in looks], out, as_json)


def _tell(results: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Print what was found, as JSON or as tables."""
    if as_json:
        typer.echo(json.dumps(results[0] | ({"beside": results[1]} if results[1:] else {}), indent=1))
        return
    for result in results:
        _print(result)
    typer.echo(visible(f"wrote {out}"))


def lens_names(measure: list[str] | None) -> list[str]:
    """The lenses that are asked for, all quick ones by default; an error with the nearest name of one that is none."""
    from headwise.lens import usual
    from headwise.lenses import LENSES

    names = list(dict.fromkeys(measure)) if measure else usual()
    for name in names:
        LENSES.get(name)
    return names


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


@dataclass(frozen=True, eq=False)
class View:
    """One side of a page: what is looked at, by what name, and the words of its tokens."""

    scene: Scene
    tokenizer: Any
    model: str
    text: str


def opened(sides: list[tuple[str | None, Path | None]], seed: int, place: tuple[str, str]) -> list[View]:
    """Models and texts, of model names and text files; a model that is on both sides is loaded once. place: element
    type and device."""
    from headwise.cli.given import place_of
    from headwise.errors import FileError
    from headwise.files import read_text
    from headwise.seams.transformers.load import load_pair, quiet

    quiet()
    told = [None if file is None else read_text(file) for _, file in sides]
    for (_, file), text in zip(sides, told, strict=True):
        if text is not None and not text.strip():
            raise FileError(f"{file} holds no text; give a file with some")
    loaded = {model: load_pair(place_of(model), *place) for model in dict.fromkeys(model for model, _ in sides)}
    return [
        View(_scene(loaded[model], text, seed), loaded[model][0], model or "embedded", file.name if file else "")
        for (model, file), text in zip(sides, told, strict=True)
    ]


def _scene(loaded: tuple[Any, Any], told: str | None, seed: int) -> Scene:
    """A model beside its tokenizer, the text or a document with facts, and what it is asked to recall."""
    import torch

    from headwise.bench.job import encode, recalls
    from headwise.calibrate.subject import ModelSubject
    from headwise.lens import Scene, Text
    from headwise.tasks.needle import NiahMultiquery

    tokenizer, model = loaded
    planted = NiahMultiquery(keys=FACTS, queries=FACTS, split="tune")
    documents = recalls(tokenizer, planted, LENGTH, DOCUMENTS, seed)
    ids = documents[0].with_answers()[0] if told is None else encode(tokenizer, told, start=True)
    delimits = [not any(c.isalnum() for c in tokenizer.decode([token])) for token in ids[0].tolist()]
    return Scene(ModelSubject(model), Text(ids, torch.tensor(delimits)), documents, seed)


def looked(
    views: list[View], names: list[str], asked: list[Head], watch: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was measured of each side, and what its patterns are drawn from. Heads that are looked at from near are the
    best of all sides where they are of one model."""
    from headwise.lens import measured
    from headwise.seams.transformers.beside import check_heads

    for view in views:
        check_heads(view.scene.subject.geometry, asked)
    found = [measured(view.scene, names, watch) for view in views]
    near = [asked or best_heads(one) for one in found]
    if len({view.model for view in views}) == 1:
        near = [list(dict.fromkeys(head for own in near for head in own))] * len(views)
    results = [
        _facts(view, one) | _near(view.scene, own, one.figures, view.tokenizer, watch)
        for view, one, own in zip(views, found, near, strict=True)
    ]
    return results, [_patterns(view.scene, own) for view, own in zip(views, near, strict=True)]


def _facts(view: View, found: Measured) -> dict[str, Any]:
    """What was measured, as JSON data: figures by lens, layer and head, null for heads that a layer does not have."""
    from dataclasses import asdict

    from headwise.lenses import LENSES

    return {
        "model": view.model,
        "prompt": view.text,
        "fingerprint": view.scene.subject.fingerprint,
        "heads": [layer.query_heads for layer in view.scene.subject.geometry.layers],
        "tokens": view.scene.text.tokens,
        "lenses": {name: asdict(LENSES.get(name).card) for name in found.figures},
        "refused": found.refused,
        "figures": {name: _listed(one) for name, one in found.figures.items()},
    }


def _listed(figures: torch.Tensor) -> list[list[float | None]]:
    """Figures by layer and head, None for heads that a layer does not have."""
    return [[None if x != x else x for x in row] for row in figures.tolist()]


def _under_plan(view: View, followed: Recipe | Plan, told: str, watch: Any) -> dict[str, Any]:
    """What a plan, told as the user did, takes from each head and which tokens it costs, as JSON data."""
    from headwise.lens.closeup import HURT
    from headwise.lens.under_plan import under_plan

    watch("reading the text under the plan")
    found = under_plan(view.scene, followed)
    worst = found.worse.topk(min(HURT, len(found.worse)))
    hurt = [
        {"place": found.read + 1 + int(at), "loss": float(loss)} for loss, at in zip(*worst, strict=True) if loss > 0
    ]
    return {"plan": {"told": told, "read": found.read, "kept": {str(layer): own for layer, own in found.kept.items()},
                     "reach": _listed(found.reach), "loss": float(found.worse.mean()), "hurt": hurt}}  # fmt: skip


def _near(
    scene: Scene, heads: list[Head], figures: dict[str, torch.Tensor], tokenizer: Any, watch: Any
) -> dict[str, Any]:
    """What these heads write and what breaks without them, and without the best of each lens; and the text by token."""
    from headwise.errors import HeadwiseError
    from headwise.lens.closeup import broken, broken_together, writings

    watch("reading what heads write")
    told: dict[str, Any] = {"text": spelled(tokenizer, scene.text.ids[0].tolist())}
    try:
        told["writes"] = writings(scene, heads, lambda token: tokenizer.decode([token]))
        told["broken"] = broken(scene, heads, lambda done, total: watch("leaving heads out", done, total))
        told["together"] = broken_together(
            scene, figures, lambda done, total: watch("leaving the best heads of each lens out", done, total)
        )
    except HeadwiseError as error:  # a model whose heads cannot be told apart behind attention
        told |= {"writes": {}, "broken": {}, "together": {}, "refused_near": str(error)}
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


def _print(result: dict[str, Any]) -> None:
    import torch
    from rich.table import Table

    from headwise.report.terminal import plain

    title = plain(" ".join(filter(None, (result["model"], result["prompt"]))))
    table = Table("lens", "heads of the highest figures", "a head of a high figure", title=title)
    for name, listed in result["figures"].items():
        figures = torch.tensor([[-float("inf") if x is None else x for x in row] for row in listed])
        order = figures.flatten().argsort(descending=True, stable=True)[:TABLED].tolist()
        best = "  ".join(f"{i // figures.shape[1]}.{i % figures.shape[1]} {figures.flatten()[i]:.3g}" for i in order)
        table.add_row(name, best, result["lenses"][name]["tells"])
    stdout().print(table)
    for name, why in result["refused"].items():
        typer.echo(visible(f"{name} was not taken: {why}"))
    if plan := result.get("plan"):
        reach = torch.tensor([[float("inf") if x is None else x for x in row] for row in plan["reach"]])
        order = reach.flatten().argsort(stable=True)[:TABLED].tolist()
        least = "  ".join(f"{i // reach.shape[1]}.{i % reach.shape[1]} {reach.flatten()[i]:.1%}" for i in order)
        last = result["tokens"] - plan["read"]
        typer.echo(visible(f"under {plan['told']} the last {last} tokens cost {plan['loss']:+.3f} nats each"))
        typer.echo(f"heads that find least of what they look at: {least}")
