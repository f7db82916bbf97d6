"""`headwise calibrate`: measure once what a model's heads are for, and write plans that use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Docs, Fresh, Json, Model, Seed, State
from headwise.report.terminal import visible

if TYPE_CHECKING:
    from headwise.calibrate.calibration import Calibration
    from headwise.observe import Material, Recall
    from headwise.plan import Plan

FACTS = 8  # planted in a document, one question each
FEW = 2  # in each of the documents of several lengths
LADDER = (0.4, 0.7, 1.0)  # of the context, their lengths
TRAINED = 2048  # tokens of a document that gradients pass through, at most, as they take memory and time


@dataclass(frozen=True)
class Wish:
    """Where results go and what is kept: the options of one call, as given; share as a number."""

    out: Path | None
    plan: Path | None
    recipe: str
    share: float
    state: Path | None
    fresh: bool


@command("calibrate")
def calibrate(
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="The calibration file to write, or to go on with.")] = None,
    docs: Docs = None,
    only: Annotated[str, typer.Option(help="Measures to take, with commas between; all by default.")] = "",
    plan: Annotated[Path | None, typer.Option(help="A plan file to write of what was measured.")] = None,
    recipe: Annotated[
        str, typer.Option(help="The plan's recipe, such as duo; by default heads that recall keep everything.")
    ] = "",
    share: Annotated[str, typer.Option(help="Share of dense bytes that a plan without a recipe may take.")] = "0.25",
    documents: Annotated[int, typer.Option(help="Documents to recall from.")] = 2,
    context: Annotated[
        str, typer.Option(help="Tokens of a document with its longest question and answer, like 3000 or 8k.")
    ] = "3000",
    train_context: Annotated[
        str, typer.Option(help="Most tokens of a document that gradients pass through, for gates and spans.")
    ] = str(TRAINED),
    seed: Seed = 0,
    as_json: Json = False,
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Measure what each head is for, in one resumable pass, and write it down; or make a plan of it.

    Facts to recall are needles of the tuning split: chapters of the built-in novel and keys that no evaluation uses.
    What `--out` holds already is not measured again. With `--plan` alone only what the plan needs is measured: which
    heads recall, by ablation.
    """
    from headwise.bench.tuning import texts_of
    from headwise.cli.given import check_contexts, check_least, check_outputs, place_of, token_count
    from headwise.cli.given import share as share_of
    from headwise.seams.transformers.load import quiet

    quiet()
    wish = Wish(out, plan, recipe, share_of("--share", share), state, fresh)
    names = _names(wish, only)
    lengths = token_count("--context", context), token_count("--train-context", train_context)
    check_least(documents=(documents, 1))
    check_outputs(out=out, plan=plan)
    place = place_of(model)
    if docs is not None:
        texts_of(docs)
    check_contexts(place, lengths[:1])
    material = _material(place, docs, documents, lengths, seed)
    found = _measured(material, names, wish)
    made = None if plan is None else _plan(found, recipe, wish.share)
    if made is not None and plan is not None:
        made.save(plan)
    typer.echo(json.dumps(_facts(found, out, plan)) if as_json else visible(_shown(found, made, out, plan)))


def _names(wish: Wish, only: str) -> list[str]:
    """The measures to take; refuses what cannot be meant."""
    from headwise.calibrate.calibrate import check_measures, measures
    from headwise.calibrate.calibration import Calibration
    from headwise.errors import HeadwiseError
    from headwise.recipe import Recipe

    if wish.out is None and wish.plan is None:
        raise HeadwiseError("nothing would be written; give --out FILE for a calibration, --plan FILE for a plan")
    if wish.out is not None and wish.state is not None:
        raise HeadwiseError(f"--state {wish.state}: what is measured is kept in --out {wish.out}; leave one out")
    if wish.recipe and wish.plan is None:
        raise HeadwiseError(f"--recipe {wish.recipe} is for a plan; name its file with --plan, or leave it out")
    names = list(measures()) if wish.out is not None or wish.recipe else ["ablation"]
    if only:
        names = check_measures(only.split(","))
    if wish.plan is not None and not wish.recipe and "ablation" not in names:
        raise HeadwiseError(f"--only {only}: a plan without a --recipe is made of the measure 'ablation'; add it")
    Recipe.parse(wish.recipe)
    if wish.out is not None and wish.out.exists() and not wish.fresh:
        Calibration.load(wish.out)
    return names


def _measured(material: Material, names: list[str], wish: Wish) -> Calibration:
    """All that is measured, each at once written into --out, or kept until the plan is made of it."""
    from headwise.calibrate.calibrate import calibrate
    from headwise.calibrate.calibration import Calibration
    from headwise.cli.progress import Watcher
    from headwise.cli.state import place_for, tell_kept

    facts = [material.subject.fingerprint, material.data]
    path = wish.out or place_for("calibrate", facts, wish.state)
    if wish.fresh:
        path.unlink(missing_ok=True)
    with Watcher() as watch:
        tell_kept(watch, path, len(Calibration.load(path).figures) if path.exists() else 0)
        found = calibrate(material, names, path, watch, lambda name: watch.finished(f"measured {name}"))
    if wish.out is None and wish.state is None:
        path.unlink()
    return found


def _material(place: str, docs: Path | None, documents: int, lengths: tuple[int, int], seed: int) -> Material:
    """What the model is measured on: needles of the tuning split, and texts of the folder or those documents.

    lengths: tokens of a document, at most, and of one that gradients pass through.
    """
    from headwise.bench.job import recalls
    from headwise.calibrate.subject import ModelSubject
    from headwise.observe import Material
    from headwise.seams.transformers.load import load_pair
    from headwise.tasks.needle import NiahMultiquery

    tokenizer, loaded = load_pair(place)

    def needles(facts: int, length: int, count: int) -> list[Recall]:
        return recalls(tokenizer, NiahMultiquery(keys=facts, queries=facts, split="tune"), length, count, seed)

    context, least = lengths[0], min(lengths)
    ladder = [one for share in LADDER for one in needles(FEW, int(least * share), 1)]
    asked = needles(FACTS, context, documents)
    shares = LADDER if least < context else ()  # lengths in turn, as DuoAttention's authors train on
    trained = [one for share in shares for one in needles(FACTS, int(least * share), 1)]
    texts = [recall.ids for recall in asked] if docs is None else _texts(tokenizer, docs, context)
    return Material(ModelSubject(loaded), texts, asked, ladder, trained)


def _texts(tokenizer: Any, folder: Path, context: int) -> list[Any]:
    """The beginnings [1, n] of all texts of a folder, at most `context` tokens each."""
    from headwise.bench.job import encode
    from headwise.bench.tuning import texts_of

    texts = (path.read_text(encoding="utf-8", errors="replace") for path in texts_of(folder))
    return [encode(tokenizer, text, start=True)[:, :context] for text in texts]


def _plan(found: Calibration, recipe: str, share: float) -> Plan:
    """The recipe for every head with the calibration in it, or the plan of heads that recall."""
    from headwise.calibrate.measures.heads import recall_plan
    from headwise.plan import Plan

    if recipe:
        return found.into(Plan.uniform(found.geometry, recipe, found.model))
    return recall_plan(found.geometry, found.tensors["head_losses"], share, found.model)


def _facts(found: Calibration, out: Path | None, plan: Path | None) -> dict[str, Any]:
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
        if one.dim() == 2 and tuple(one.shape) == found.geometry.by_head:
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
