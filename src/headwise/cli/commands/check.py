"""`headwise check`: a plan beside dense attention, and the verdict written into the plan file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Fresh, Json, Model, Seed, State
from headwise.report.terminal import visible

FAILED = 1


@command("check")
def check(
    plan: Annotated[Path, typer.Argument(help="The plan file; the verdict is written into it.")],
    model: Model = None,
    context: Annotated[str, typer.Option(help="Tokens of the document with its questions, like 2048 or 2k.")] = "2k",
    facts: Annotated[int, typer.Option(help="Facts planted, one question each.")] = 10,
    seed: Seed = 0,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Hold a plan against dense attention: distributions, facts by depth, a conversation, loops.

    Exit code 1 on failure. The verdict goes into the plan file; a plan without a pass is used with a warning.
    """
    from headwise.assets import NOVEL_TITLE, novel
    from headwise.bench.checks.check import Checker, Limits
    from headwise.bench.job import novel_job
    from headwise.cli.given import (
        check_contexts,
        check_least,
        check_outputs,
        check_place,
        check_plan,
        place_of,
        token_count,
    )
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state, unfinished
    from headwise.seams.transformers.cache import as_plan, attach
    from headwise.seams.transformers.load import load_pair, quiet

    quiet()
    tokens, place = token_count("--context", context), place_of(model)
    check_least(facts=(facts, 1))
    check_place(dtype, device)
    check_contexts(place, (tokens,))
    given = check_plan(plan, place)
    check_outputs(plan=plan)
    check_state(state)
    with Watcher() as watch:
        watch(f"loading {place}")
        tokenizer, loaded = load_pair(place, dtype, device)
        used = as_plan(attach(loaded), given)
        job = novel_job(tokenizer, novel(), tokens, title=NOVEL_TITLE, facts=facts, seed=seed, new_tokens=200)
        facts_of = [attach(loaded).fingerprint, str(loaded.dtype), used.digest, tokens, facts, seed]
        with unfinished("check", facts_of, watch, state=state, fresh=fresh) as folder:
            found = Checker(loaded, tokenizer, job, seed, folder).check(used, Limits(), watch, watch.finished)
    replace(given, quality={**given.quality, "check": found}).save(plan)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for line in verdict_lines(found):
            typer.echo(visible(line))
        typer.echo(visible(f"written into {plan}"))
    if not found["passed"]:
        raise typer.Exit(FAILED)


def verdict_lines(found: dict[str, Any]) -> list[str]:
    """A verdict as lines."""
    dense, own = found["dense"], found["plan"]
    lines = [
        "PASSED" if found["passed"] else f"FAILED: {'; '.join(found['failures'])}",
        f"KL from dense {found['kl']:.4f} nats by token, top-1 agreement {found['agreement']:.1%}",
        "layer errors: " + " ".join(f"{error:.3f}" for error in found["fidelity"]["layer_error"]),
    ]
    for name, kind in (("needle", "facts by depth"), ("turns", "facts by turn")):
        marks = (
            "".join("x" if right else "." for right in side[name]) + f" {sum(side[name])}/{len(side[name])}"
            for side in (dense, own)
        )
        lines.append(f"{kind}: dense {next(marks)}, plan {next(marks)}")
    lines.append(f"repeated runs of a free text: dense {dense['loops']:.1%}, plan {own['loops']:.1%}")
    return lines
