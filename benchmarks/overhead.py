"""What an empty recipe costs: greedy `generate` over a headwise cache beside transformers' own sdpa path.

    python benchmarks/overhead.py --models embedded 0.5b --tokens 4096 --new 128 --repetitions 5

Same model, same prompt, repetitions interleaved (a, b, b, a, ...) so that drift of the machine hits both; medians. The
new tokens of both arms are compared. The limit (`--limit`) is 1.15 of sdpa's wall time. The last column is what it
costs that a decoding step can be taken back, as a share of the step (asked: at most 1 %).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import models
import torch
from transformers import PreTrainedModel

import headwise
from headwise.bench.provenance import machine, versions
from headwise.seams.transformers.drive import feed, prefill
from headwise.seams.transformers.forward import cache_argument

LIMIT = 1.15


def once(model: PreTrainedModel, ids: torch.Tensor, new: int, arm: str) -> tuple[float, torch.Tensor]:
    """(seconds, new ids) of one greedy run. Switching the attention implementation is not timed."""
    how: dict = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    if arm == "headwise":
        how[cache_argument(type(model))] = headwise.Cache(model, "")
    else:
        model.set_attn_implementation("sdpa")
    start = time.perf_counter()
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    return time.perf_counter() - start, out[0, ids.shape[1] :]


def compare(name: str, tokens: int, new: int, repetitions: int, dtype: torch.dtype) -> dict:
    """Medians of both arms on one model, and whether they wrote the same."""
    model = models.load(name, dtype=dtype)
    ids = models.prompt(model, tokens)
    times: dict[str, list[float]] = {"sdpa": [], "headwise": []}
    wrote: dict[str, torch.Tensor] = {}
    for arm in times:  # warm-up
        once(model, ids[:, : min(tokens, 512)], 4, arm)
    for place in range(repetitions):
        order = list(times) if place % 2 == 0 else list(reversed(times))
        for arm in order:
            seconds, wrote[arm] = once(model, ids, new, arm)
            times[arm].append(seconds)
    medians = {arm: statistics.median(seconds) for arm, seconds in times.items()}
    same = int((wrote["sdpa"] == wrote["headwise"]).long().cumprod(0).sum())
    return {
        "model": name,
        "tokens": tokens,
        "new_tokens": new,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": times,
        "median_s": medians,
        "ratio": medians["headwise"] / medians["sdpa"],
        "going_back": going_back(model, ids),
        "equal_tokens": same,
    }


def going_back(model: PreTrainedModel, ids: torch.Tensor, steps: int = 50) -> float:
    """What it costs that a decoding step can be taken back, as a share of the step: to begin one with and without."""
    cache, one = headwise.Cache(model, "streaming(256)"), ids[:, :1]
    prefill(model, cache, ids)
    feed(model, cache, one)
    begun: dict[bool, list[float]] = {True: [], False: []}
    taken = []
    for _ in range(steps):
        for undo, times in begun.items():
            session = cache.session.fork()
            start = time.perf_counter()
            session.begin(1, "decode", undo=undo)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        feed(model, cache, one)
        taken.append(time.perf_counter() - start)
    extra = statistics.median(begun[True]) - statistics.median(begun[False])
    return max(0.0, extra) / statistics.median(taken)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded", "0.5b"], help="of embedded, 0.5b, small, tiny")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--limit", type=float, default=LIMIT, help="of sdpa's wall time; beyond it the exit code is 1")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    """Measure every model; print a table or JSON. Exit code 1 when a ratio exceeds the limit."""
    options = arguments().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    rows = [compare(name, options.tokens, options.new, options.repetitions, dtype) for name in options.models]
    if options.json:
        facts = {"limit": options.limit, "versions": versions(), "machine": machine()}
        print(json.dumps({"rows": rows, **facts}, indent=1))
    else:
        print(
            f"{options.tokens} tokens of prompt, {options.new} new, {options.dtype}, medians of {options.repetitions}"
        )
        print(f"{'model':12}{'sdpa s':>10}{'headwise s':>12}{'ratio':>8}{'equal tokens':>14}{'going back':>12}")
        for row in rows:
            medians, same = row["median_s"], f"{row['equal_tokens']} of {row['new_tokens']}"
            print(
                f"{row['model']:12}{medians['sdpa']:10.2f}{medians['headwise']:12.2f}{row['ratio']:8.3f}{same:>14}"
                f"{row['going_back']:12.2%}"
            )
        print(f"limit {options.limit}: {'kept' if all(row['ratio'] <= options.limit for row in rows) else 'EXCEEDED'}")
    if any(row["ratio"] > options.limit for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
