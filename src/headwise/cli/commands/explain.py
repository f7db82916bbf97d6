"""`headwise explain`: what a recipe or a plan does, what it forgets, and what it will cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.report.terminal import visible

if TYPE_CHECKING:
    from headwise.geometry import Geometry
    from headwise.plan import Plan
    from headwise.recipe import Recipe

CHUNKS = {
    "exact": "a prompt in chunks gives the same as in one pass",
    "approximate": "a prompt in chunks may give another choice than one pass",
    "whole_prompt": "the prompt must come in one pass (--chunk 0)",
}


def embedded_geometry() -> Geometry:
    """The embedded model's: from its config where the package carries it, else from the recipe it is trained by."""
    from headwise.assets import embedded_model
    from headwise.errors import HeadwiseError
    from headwise.geometry import Geometry
    from headwise.models.embedded.recipe import Architecture

    try:
        config = json.loads((embedded_model() / "config.json").read_text())
    except HeadwiseError:
        own = Architecture()
        alike = own.heads, own.kv_heads, own.head_dim, own.head_dim
        return Geometry.uniform(*alike, (None,) * own.layers, own.max_positions)
    windows, width = (None,) * config["num_hidden_layers"], config["head_dim"]
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    return Geometry.uniform(*heads, width, width, windows, config["max_position_embeddings"])


def _part_lines(part: Any) -> list[str]:
    """One part of a recipe: what it is called, its knobs, what is lost, how it takes chunks."""
    from dataclasses import fields

    knobs = ", ".join(f"{field.name}={getattr(part, field.name)}" for field in fields(part))
    return [
        f"{part.part}: {part.name}({knobs})",
        f"  {part.own_card.title}",
        f"  forgets: {part.own_card.forgets}",
        f"  chunks: {CHUNKS[part.own_card.chunking]}",
    ]


def _recipe_lines(recipe: Recipe) -> list[str]:
    lines = [f"recipe: {recipe}"]
    if not recipe.parts:
        lines.append("dense attention, exactly: nothing is dropped, nothing is rounded")
    return lines + [line for part in recipe.parts for line in _part_lines(part)]


def _cost_lines(plan: Plan, tokens: int, dtype: str) -> list[str]:
    """What budgets in bytes mean, and what the plan holds after a prompt of `tokens`."""
    import torch

    from headwise.cost.prediction import predicted_bytes
    from headwise.engine.budget import in_tokens, meanings
    from headwise.errors import ContextError
    from headwise.geometry import layers_of
    from headwise.shapes import format_bytes

    geometry, kind = plan.geometry, getattr(torch, dtype)
    if not 1 <= tokens <= geometry.max_positions:
        raise ContextError(
            f"--context {tokens}: this model was trained on {geometry.max_positions} positions; give 1 to that many"
        )
    held, dense = predicted_bytes(plan, tokens, kind), geometry.dense_bytes(tokens, kind)
    return [
        *meanings(plan, in_tokens(plan, kind)),
        f"cache after {tokens} tokens ({layers_of(geometry.kv_heads)} KV heads, {dtype}): "
        f"{format_bytes(held)}, dense takes {format_bytes(dense)} ({held / dense:.1%})",
    ]


def _plan_lines(plan: Plan) -> list[str]:
    """Who follows what, and what the plan knows of itself."""
    followers: dict[Recipe, list[str]] = {}
    for layer, row in enumerate(plan.recipes):
        for head, recipe in enumerate(row):
            followers.setdefault(recipe, []).append(f"{layer}.{head}")
    lines = [f"plan {plan.digest} for model {plan.model or 'of any weights'}"]
    for recipe, heads in followers.items():
        shown = ", ".join(heads[:12]) + (f", ... ({len(heads)} heads)" if len(heads) > 12 else "")
        lines += [f"layer.head {shown}:", *(f"  {line}" for line in _recipe_lines(recipe))]
    lines += [f"protected tokens: {start} to {end - 1}" for start, end in plan.spans]
    lines += [f"measured {name}: {value}" for name, value in plan.quality.items()]
    return lines + [f"calibration {name}: {list(tensor.shape)}" for name, tensor in plan.calibration.items()]


def _geometry_of(model: str | None) -> tuple[Geometry, str]:
    """(geometry, element type) of a model, by its config alone, or of the embedded one."""
    if model is None:
        return embedded_geometry(), "bfloat16"
    from headwise.cli.given import place_of
    from headwise.cost.meta_model import MetaModel
    from headwise.seams.transformers.load import load_meta, quiet

    quiet()
    empty = load_meta(place_of(model))
    return MetaModel(empty).geometry, str(empty.dtype).removeprefix("torch.")


@command("explain")
def explain(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_PLAN", help="A recipe, a method's name, or the path of a plan file.")
    ],
    model: Annotated[
        str | None, typer.Argument(help="Count bytes for this model, a path or hub id; the embedded one by default.")
    ] = None,
    context: Annotated[str, typer.Option(help="Tokens of the prompt that bytes are counted for, like 8k.")] = "8k",
) -> None:
    """Say what a recipe or plan does, what it forgets and what it will cost; or show the card of one method."""
    from headwise.cli.commands.methods import card
    from headwise.cli.given import is_plan, token_count
    from headwise.errors import PlanError
    from headwise.plan import Plan
    from headwise.recipe import Recipe
    from headwise.registry import all_methods

    tokens = token_count("--context", context)
    if what in all_methods():
        lines = card(what)
    elif is_plan(what):
        plan = Plan.load(what)
        geometry, dtype = (plan.geometry, "bfloat16") if model is None else _geometry_of(model)
        if geometry != plan.geometry:
            raise PlanError(f"{what} is for another model than {model} ({plan.geometry}); leave the model out")
        lines = [*_plan_lines(plan), *_cost_lines(plan, tokens, dtype)]
    else:
        recipe = Recipe.parse(what)
        geometry, dtype = _geometry_of(model)
        lines = [*_recipe_lines(recipe), *_cost_lines(Plan.uniform(geometry, recipe), tokens, dtype)]
    typer.echo(visible("\n".join(lines)))
