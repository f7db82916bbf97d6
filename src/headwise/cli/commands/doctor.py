"""`headwise doctor`: what this machine has, which attention backends work here, and whether the embedded model does;
of a model that is named, what a plan governs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from headwise.cli.commands import command

# The oldest version supported and the newest that the suite ran on; newer ones are tried as they come.
TESTED = {"python": ("3.10", "3.11"), "torch": ("2.6", "2.13"), "transformers": ("4.57.6", "5.23")}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _standing(name: str, version: str) -> str:
    """Where a version stands in the supported range."""
    oldest, newest = TESTED[name]
    if _numbers(version) < _numbers(oldest):
        return f"too old: install {name} {oldest} or newer"
    told = f"supported from {oldest}, tested up to {newest}"
    return told if _numbers(version) <= _numbers(newest) else f"{told}; newer than tested"


def examine() -> dict[str, Any]:
    """All findings as plain JSON data."""
    from headwise.bench.provenance import machine, versions
    from headwise.kernels.dispatch import BACKENDS

    found = versions()
    backends = []
    for backend in BACKENDS.all().values():
        usable, told = backend.available()
        backends.append({"name": backend.name, "usable": usable, "why": told})
    standing = {name: _standing(name, found[name]) for name in TESTED}
    return {
        "versions": found,
        "supported": standing,
        "machine": machine(),
        "backends": backends,
        "embedded_model": _self_check(),
    }


def _self_check() -> dict[str, Any]:
    """Whether the embedded model computes under headwise what it computes without."""
    from headwise.assets import embedded_model
    from headwise.errors import HeadwiseError
    from headwise.geometry import layers_of
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_model, quiet

    try:
        path = embedded_model()
    except HeadwiseError as error:
        return {"there": False, "passes": False, "why": str(error)}
    quiet()
    try:
        seam = attach(load_model(path))
    except HeadwiseError as error:
        return {"there": True, "passes": False, "why": str(error)}
    told = f"{layers_of(seam.geometry.kv_heads)} KV heads; computes the same with headwise and without"
    return {"there": True, "passes": True, "why": told}


def _about(model: str, as_json: bool) -> None:
    """What a plan governs of a model, from its config.json alone."""
    from headwise.cli.given import place_of
    from headwise.cost.governed import governed, governed_lines
    from headwise.cost.meta_model import MetaModel
    from headwise.seams.transformers.load import load_meta, quiet

    quiet()
    found = governed(MetaModel(load_meta(place_of(model), "bfloat16")))  # experts run without weights in no other type
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(governed_lines(found)))


@command("doctor")
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="A model's path, hub id or name: say what of it a plan governs.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Say what works here and what does not, and why. Exit code 1 when something that is there does not work.

    Of a MODEL it says instead, from its config.json alone, which layers a plan governs and what share of a long
    sequence's bytes that is; exit code 1 when headwise refuses it.
    """
    if model is not None:
        _about(model, as_json)
        return
    found = examine()
    own, standing = found["embedded_model"], found["supported"]
    failed = [name for name, told in standing.items() if told.startswith("too old")]
    failed += [] if own["passes"] or not own["there"] else ["embedded model"]
    failed += [] if any(one["usable"] for one in found["backends"]) else ["backends"]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for name, version in found["versions"].items():
            typer.echo(f"{name:14} {version:12} {standing.get(name, '')}".rstrip())
        here = found["machine"]
        typer.echo(f"{'machine':14} {here['processor']}, {here['cores']} cores, {here['threads']} threads used")
        typer.echo(f"{'accelerator':14} {here['accelerator']}")
        for one in found["backends"]:
            typer.echo(f"{'backend':14} {one['name']:12} {'usable' if one['usable'] else 'not usable'}: {one['why']}")
        state = "self-check passes" if own["passes"] else "self-check fails" if own["there"] else "not here"
        typer.echo(f"{'embedded model':14} {state}: {own['why']}")
    if failed:
        typer.echo(f"not in order: {', '.join(failed)}", err=True)
        raise typer.Exit(1)
