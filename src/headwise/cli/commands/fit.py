"""`headwise fit`: will it fit, and how long will it take, told from config.json before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli.commands import command
from headwise.cli.options import Dtype, Json, Model
from headwise.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.cost.fit import Fit

TOO_LARGE = 1
# Between prediction and measurement in most rows of benchmarks/fit.py, on a machine that others used meanwhile.
TIME_FACTOR = 4


@command("fit")
def fit(
    model: Model = None,
    context: Annotated[
        str, typer.Option(help="Tokens of each prompt, like 8192 or 32k, or auto for the most that fit.")
    ] = "auto",
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    recipe: Annotated[str, typer.Option(help="A recipe; dense attention by default.")] = "",
    plan: Annotated[Path | None, typer.Option(help="A plan file, in place of a recipe.")] = None,
    available: Annotated[
        str | None, typer.Option(help="Memory the whole process may take, such as 8GiB; else what is free.")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a piece of prompt, 0: in one pass. By default 2048, and "
            "one pass for a batch, as nothing else reads a batch."
        ),
    ] = None,
    as_json: Json = False,
    dtype: Dtype = "auto",
) -> None:
    """Predict peak memory and time of a model under a recipe, from its config.json, before any weight is loaded.

    Exit code 1 when it does not fit.
    """
    from headwise.cli.given import byte_count, check_least, given, place_of, token_count
    from headwise.cost.fit import CHUNK, Predictor
    from headwise.cost.meta_model import MetaModel
    from headwise.plan import Plan
    from headwise.seams.transformers.by_itself import refuse_reading
    from headwise.seams.transformers.load import load_meta, quiet, weight_bytes

    quiet()
    if plan is not None and recipe:
        raise HeadwiseError(f"--plan {plan} and --recipe '{recipe}' say the same; give one of them")
    tokens = None if context == "auto" else token_count("--context", context)
    check_least(batch=(batch, 1), chunk=(chunk, 0))
    name = place_of(model)
    meta = MetaModel(load_meta(name, dtype))
    followed = Plan.load(plan) if plan is not None else Plan.uniform(meta.geometry, recipe)
    if followed.geometry != meta.geometry:
        raise HeadwiseError(f"--plan {plan} is for another model ({followed.geometry}); make a plan for this one")
    if meta.by_itself is not None:
        refuse_reading(followed, meta.by_itself)
    predictor = Predictor(
        meta, weight_bytes(name, meta.model), followed, batch,
        chunk=chunk if chunk is not None else CHUNK if batch == 1 else 0,
        memory=given("--available", available, byte_count),
    )  # fmt: skip
    found = predictor.largest() if tokens is None else predictor.fit(tokens)
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else "\n".join(prediction_lines(found)))
    if not found.fits:
        raise typer.Exit(TOO_LARGE)


def prediction_lines(found: Fit) -> list[str]:
    """A prediction as lines."""
    from headwise.shapes import format_bytes

    free = "unknown" if found.free is None else format_bytes(found.free)
    lines = [
        f"{found.tokens} tokens in each of {found.batch} sequences: {format_bytes(found.peak)} at the worst moment, "
        f"{free} free: {'fits' if found.fits else 'DOES NOT FIT'}"
    ]
    parts = ("weights", "cache", "workspace", "runtime")
    lines += [f"  {name:10} {format_bytes(getattr(found, name))}" for name in parts]
    lines.append(
        f"about {found.prompt_s:.2g} s for the prompt, {1000 * found.token_s:.2g} ms for each token: an estimate, from "
        f"rates measured for a moment, that may be off by a factor of {TIME_FACTOR}, or more while the machine is busy"
    )
    if not found.fits:
        lines.append("give a shorter --context (auto finds the longest), a --recipe that evicts, or a smaller --batch")
    return lines
