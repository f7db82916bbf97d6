"""`headwise calibrate`: measure once what a model's heads are for, and write plans that use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from headwise.calibrate.calibration import Calibration
    from headwise.calibrate.heads import Recall
    from headwise.calibrate.measures import Material
    from headwise.plan import Plan

FACTS = 8  # planted in a document, one question each
FEW = 2  # in each of the documents of several lengths
LADDER = (0.4, 0.7, 1.0)  # of the context, their lengths
TRAINED = 2048  # tokens of a document that gradients pass through, at most, as they take memory and time


def calibrate(
    model: Annotated[
        str | None, typer.Argument(help="A model's path or hub id; the embedded model by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The calibration file to write, or to go on with.")] = None,
    docs: Annotated[
        Path | None, typer.Option(help="A folder of .txt files to read instead of the built-in novel.")
    ] = None,
    only: Annotated[str, typer.Option(help="Measures to take, with commas between; all by default.")] = "",
    plan: Annotated[Path | None, typer.Option(help="A plan file to write of what was measured.")] = None,
    recipe: Annotated[
        str, typer.Option(help="The plan's recipe, such as duo; by default heads that recall keep everything.")
    ] = "",
    budget: Annotated[float, typer.Option(help="Share of dense bytes that a plan without a recipe may take.")] = 0.25,
    documents: Annotated[int, typer.Option(help="Documents to recall from.")] = 2,
    context: Annotated[int, typer.Option(help="Tokens of a document with its longest question and answer.")] = 3000,
    train_context: Annotated[
        int, typer.Option(help="Most tokens of a document that gradients pass through, for gates and spans.")
    ] = TRAINED,
    seed: Annotated[int, typer.Option(help="Seed of the facts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what each head is for, in one resumable pass, and write it down; or make a plan of it.

    Facts to recall are needles of the tuning split: chapters of the built-in novel and keys that no evaluation uses.
    What `--out` holds already is not measured again. With `--plan` alone only what the plan needs is measured: which
    heads recall, by ablation.
    """
    from headwise.assets import embedded_model
    from headwise.calibrate.measures import MEASURES, calibrate, check_measures
    from headwise.cli.progress import Watcher
    from headwise.engine.load import quiet
    from headwise.errors import HeadwiseError

    if out is None and plan is None:
        raise HeadwiseError("nothing would be written; give --out FILE for a calibration, --plan FILE for a plan")
    names = list(MEASURES) if out is not None or recipe else ["ablation"]
    if only:
        names = check_measures(only.split(","))
    if plan is not None and not recipe and "ablation" not in names:
        raise HeadwiseError(f"--only {only}: a plan without a --recipe is made of the measure 'ablation'; add it")
    quiet()
    material = _material(model or str(embedded_model()), docs, documents, (context, train_context), seed)
    with Watcher(Console(stderr=True)) as watch:
        found = calibrate(material, names, out, watch)
    made = None if plan is None else _plan(found, recipe, budget)
    if made is not None and plan is not None:
        made.save(plan)
    typer.echo(json.dumps(_told(found, out, plan)) if as_json else _shown(found, made, out, plan))


def _material(place: str, docs: Path | None, documents: int, lengths: tuple[int, int], seed: int) -> Material:
    """What the model is measured on: needles of the tuning split, and texts of the folder or those documents.

    lengths: tokens of a document, at most, and of one that gradients pass through.
    """
    from headwise.bench.job import encode
    from headwise.bench.tasks.needle import NiahMultiquery
    from headwise.calibrate.measures import Material
    from headwise.engine.load import load_model, load_tokenizer

    loaded, tokenizer = load_model(place), load_tokenizer(place)

    def recalls(facts: int, length: int, count: int) -> list[Recall]:
        needles = NiahMultiquery(keys=facts, queries=facts, split="tune")
        items = needles.items(lambda text: encode(tokenizer, text).shape[1], length, count, seed)
        return [_recall(tokenizer, item) for item in items]

    context, least = lengths[0], min(lengths)
    ladder = [one for share in LADDER for one in recalls(FEW, int(least * share), 1)]
    asked = recalls(FACTS, context, documents)
    shares = LADDER if least < context else ()  # lengths in turn, as DuoAttention's authors train on
    trained = [one for share in shares for one in recalls(FACTS, int(least * share), 1)]
    texts = [recall.ids for recall in asked] if docs is None else _texts(tokenizer, docs, context)
    return Material(loaded, texts, asked, ladder, trained)


def _texts(tokenizer: Any, folder: Path, context: int) -> list[Any]:
    """The beginnings [1, n] of all texts of a folder, at most `context` tokens each."""
    from headwise.bench.job import encode
    from headwise.errors import HeadwiseError

    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise HeadwiseError(f"--docs {folder}: there are no .txt files; give a folder that has some, or leave it out")
    return [encode(tokenizer, path.read_text(encoding="utf-8"), start=True)[:, :context] for path in files]


def _recall(tokenizer: Any, item: Any) -> Recall:
    """A document and what is asked about it, as ids."""
    from headwise.bench.job import encode
    from headwise.calibrate.heads import Recall

    asked = tuple((encode(tokenizer, ask.prompt), encode(tokenizer, ask.expected[0])) for ask in item.asks)
    return Recall(encode(tokenizer, item.document, True), asked)


def _plan(found: Calibration, recipe: str, budget: float) -> Plan:
    """The recipe for every head with the calibration in it, or the plan of heads that recall."""
    from headwise.calibrate.heads import recall_plan
    from headwise.plan import Plan

    if recipe:
        return found.into(Plan.uniform(found.geometry, recipe, found.model))
    return recall_plan(found.geometry, found.tensors["head_losses"], budget, found.model)


def _told(found: Calibration, out: Path | None, plan: Path | None) -> dict[str, Any]:
    """The calibration without its tensors, as JSON data."""
    return {
        "model": found.model,
        "data": found.data,
        "figures": found.figures,
        "tensors": {name: list(one.shape) for name, one in found.tensors.items()},
        "files": [str(path) for path in (out, plan) if path is not None],
    }


def _shown(found: Calibration, made: Plan | None, out: Path | None, plan: Path | None) -> str:
    """The same for people, with the figures of each head where there is one for each."""
    lines = []
    for name, one in sorted(found.tensors.items()):
        lines.append(f"{name} {list(one.shape)}")
        if one.dim() == 2 and one.shape[0] == found.geometry.layers:
            lines += [f"layer {i:2}  " + "  ".join(f"{x:6.3f}" for x in row) for i, row in enumerate(one.tolist())]
    if made is not None:
        kept = {
            (i, j)
            for i, row in enumerate(made.recipes)
            for j, r in enumerate(row)
            if not r.at(made.calibration, i, j).evict
        }
        lines.append(f"kept whole (layer, head): {', '.join(map(str, sorted(kept)))}")
    return "\n".join([*lines, *(f"wrote {path}" for path in (out, plan) if path is not None)])
