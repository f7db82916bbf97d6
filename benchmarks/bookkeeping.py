"""What choosing costs: the time that scoring, choosing and moving tokens take of a prompt and of decoding.

    python benchmarks/bookkeeping.py --model 1b --layers 2 --prompts 2048 8192 --stored 32768

Prompts: read in one pass, so that the attention of a recipe is that of the empty one; nine tenths leave at the end.
Decoding: a cache that holds `--stored` tokens and is bounded by as many, over the steps from one eviction to the next;
each of them carries its part of the eviction.

Two figures each. `clocked`: seconds inside the session's calls after attention (counting mass, notes, scoring,
choosing, keeping, settling) over the seconds outside them. `beside`: the whole beside the empty recipe's, over the same
bytes, taking turns; it has the noise of two runs, and below zero it says no more than that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import models
import step
from transformers import PreTrainedModel

import headwise
from headwise.bench.provenance import machine, versions
from headwise.compiled.linear import stream_linears
from headwise.engine import session
from headwise.seams.transformers.drive import prefill

CALLS = ("count_mass", "bring_down")  # of engine/session.py, all after a step's attention
PROMPT_LIMIT, DECODE_LIMIT = 0.10, 0.05
PROMPTS = ["snapkv", "snapkv | ada", "expected_attention", "h2o", "keydiff", "tova"]
BOUNDED = ["raas", "h2o", "lazy", "tova", "streaming"]


@contextmanager
def clocked() -> Iterator[list[float]]:
    """Seconds of every call of `CALLS` meanwhile."""
    spent: list[float] = []
    own = {name: getattr(session, name) for name in CALLS}

    def timed(call: Callable) -> Callable:
        def run(*arguments: object) -> None:
            start = time.perf_counter()
            call(*arguments)
            spent.append(time.perf_counter() - start)

        return run

    for name, call in own.items():
        setattr(session, name, timed(call))
    try:
        yield spent
    finally:
        for name, call in own.items():
            setattr(session, name, call)


def prompt(model: PreTrainedModel, recipe: str, tokens: int) -> tuple[float, float]:
    """(seconds of a prompt, those of them spent on choosing)."""
    cache, ids = headwise.Cache(model, recipe), models.prompt(model, tokens)
    with clocked() as spent:
        start = time.perf_counter()
        prefill(model, cache, ids, None)
        return time.perf_counter() - start, sum(spent)


def decoding(model: PreTrainedModel, recipe: str, tokens: int) -> tuple[float, float]:
    """(mean seconds of a step from one eviction to the next, those of them spent on choosing)."""
    advance = step.stepper(model, step.filled(model, recipe, tokens), tokens, "headwise")
    with clocked() as spent:
        seconds = [advance() for _ in range(session.DECODE_INTERVAL)]
    return statistics.mean(seconds), sum(spent) / len(seconds)


def compare(run: Callable[[str], tuple[float, float]], recipes: list[str], repetitions: int) -> dict[str, dict]:
    """Medians by recipe, the empty one first; recipes take turns."""
    found: dict[str, list[tuple[float, float]]] = {recipe: [] for recipe in ["", *recipes]}
    for i in range(repetitions):
        for recipe in list(found) if i % 2 == 0 else reversed(found):
            found[recipe].append(run(recipe))
    plain = statistics.median(whole for whole, _ in found[""])
    return {
        recipe: {
            "seconds": statistics.median(whole for whole, _ in own),
            "clocked": statistics.median(spent / (whole - spent) for whole, spent in own),
            "beside": statistics.median(whole for whole, _ in own) / plain - 1,
        }
        for recipe, own in found.items()
    }


def show(title: str, rows: dict[str, dict], limit: float) -> None:
    print(f"\n{title}\n  {'':32}{'s':>9}{'clocked':>10}{'beside':>10}")
    for recipe, row in rows.items():
        mark = "" if row["clocked"] <= limit else f"  over the limit of {limit:.0%}"
        print(
            f"  {recipe or 'dense':32}{row['seconds']:9.3f}{row['clocked']:10.1%}{row['beside']:10.1%}{mark}",
            flush=True,
        )


def with_budget(recipe: str, budget: float | int) -> str:
    name, bar, rest = recipe.partition(" | ")
    return f"{name}({budget}){bar}{rest}"


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1b", choices=sorted(models.SHAPES))
    parser.add_argument("--layers", type=int, help="fewer than the model has: shares hardly change with depth")
    parser.add_argument("--prompts", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--stored", type=int, nargs="*", default=[32768])
    parser.add_argument("--evict", nargs="+", default=PROMPTS, help="recipes of prompts, without a budget")
    parser.add_argument("--bounded", nargs="+", default=BOUNDED, help="recipes of decoding, without a budget")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    model = models.load(args.model, layers=args.layers)
    stream_linears(model)
    prompt(model, "snapkv(0.1)", 256)  # warm-up
    results: dict[str, dict] = {}
    for job, recipes, lengths, limit in (
        (prompt, [with_budget(one, 0.1) for one in args.evict], args.prompts, PROMPT_LIMIT),
        (decoding, None, args.stored, DECODE_LIMIT),
    ):
        for tokens in lengths:
            own = recipes or [with_budget(one, tokens) for one in args.bounded]
            title = f"{args.model}, {job.__name__}, {tokens} tokens"
            results[title] = compare(lambda recipe, job=job, n=tokens: job(model, recipe, n), own, args.repetitions)
            show(title, results[title], limit)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"results": results, "machine": machine(), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
