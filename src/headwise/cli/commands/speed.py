"""`headwise speed`: time and memory of a recipe or plan beside dense attention."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Fresh, Json, Model, RecipeOrPlan, Seed, State, Threads


@command("speed")
def speed(
    recipe: RecipeOrPlan,
    model: Model = None,
    context: Annotated[str, typer.Option(help="Prompt lengths in tokens, with commas between.")] = "1k,4k",
    new_tokens: Annotated[int, typer.Option(help="Tokens written after each prompt.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Turns through all arms, beside one to warm up.")] = 5,
    batch_memory: Annotated[str, typer.Option(help="Bytes the caches of the largest batch may take.")] = "64MiB",
    as_json: Json = False,
    seed: Seed = 0,
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """Time to first token, time per token, throughput and bytes; says so where there is no gain, or too much noise."""
    import torch

    from headwise.bench.protocol import record
    from headwise.bench.speed import Timer, check_repetitions
    from headwise.cli.given import (
        byte_count,
        check_contexts,
        check_least,
        check_place,
        check_recipe_or_plan,
        place_of,
        several,
        token_count,
    )
    from headwise.cli.progress import Watcher
    from headwise.cli.state import check_state, unfinished
    from headwise.seams.transformers.cache import as_plan, attach
    from headwise.seams.transformers.load import load_model, quiet

    quiet()
    lengths, memory = several("--context", context, token_count), byte_count("--batch-memory", batch_memory)
    check_repetitions(new_tokens, repetitions)
    check_least(threads=(threads, 1))
    check_place(dtype, device)
    check_state(state)
    place = place_of(model)
    wanted = check_recipe_or_plan(recipe, place)
    check_contexts(place, lengths, new_tokens)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = {"contexts": list(lengths), "new_tokens": new_tokens, "repetitions": repetitions, "memory": memory}
    with Watcher() as watch:
        watch(f"loading {place}")
        loaded = load_model(place, dtype, device)
        seam = attach(loaded)
        plan = as_plan(seam, wanted)
        facts = [seam.fingerprint, str(loaded.dtype), device, plan.digest, settings, seed]
        with unfinished("speed", facts, watch, state=state, fresh=fresh) as folder:
            timer = Timer(loaded, plan, new_tokens, repetitions, memory, seed, folder)
            found = timer.measure(lengths, watch, lambda one: watch.finished("\n".join(lines_of(one))))
    named = {"name": model or "embedded", "fingerprint": seam.fingerprint}
    made = record(data="random tokens", settings=settings, arms=[recipe, plan.digest], model=named, seed=seed)
    whole = {"kind": "speed", "protocol": made, **found}
    typer.echo(json.dumps(whole, indent=1) if as_json else "\n".join(speed_lines(found)))


def speed_lines(found: dict[str, Any]) -> list[str]:
    """The result as lines."""
    from headwise.shapes import format_bytes

    lines = [line for one in found["contexts"] for line in lines_of(one)]
    even = found["break_even"]
    lines.append("each token gets no faster at these lengths" if even is None else f"tokens are faster from {even} on")
    lines += lines_of(found["batch"])
    lines.append(f"peak memory of the process: {format_bytes(found['process_peak_bytes'])}")
    return lines


def lines_of(one: dict[str, Any]) -> list[str]:
    """What was found at one context, or of the largest batch, as lines."""
    from headwise.shapes import format_bytes

    if "medians" not in one:
        sides = ", ".join(
            f"{name} {one[name]['rows']} rows, {one[name]['tokens_per_s']:.1f} tokens/s" for name in ("dense", "plan")
        )
        return [f"within {format_bytes(one['memory'])} at {one['context']} tokens: {sides}"]
    dense, plan = one["medians"]["dense"], one["medians"]["plan"]
    lines = [f"{one['context']} tokens"]
    names = {"first_token_s": "first token", "token_s": "each token", "end_to_end_s": "end to end"}
    for key, name in names.items():
        milliseconds = f"{1000 * dense[key]:9.2f} ms dense {1000 * plan[key]:9.2f} ms"
        lines.append(f"  {name:12} {milliseconds}  {one[key]['words']}")
    sizes = ", ".join(
        f"{name} {format_bytes(side['cache_bytes'])} (peak {format_bytes(side['peak_bytes'])})"
        for name, side in (("dense", dense), ("plan", plan))
    )
    lines.append(f"  cache        {sizes}")
    return lines
