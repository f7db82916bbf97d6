"""A token beside other work: headwise and transformers in turns while some processes keep the processor busy.

    python benchmarks/busy.py smollm2 --busy 0 2

MODEL is a folder or a short name (`headwise models`). A busy process adds numbers without end. headwise runs compiled
(`headwise.fast`), transformers with sdpa, each over its own dense cache of the same prompt; medians of a token's time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

import headwise
from headwise.bench.provenance import machine, versions
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.load import located


def work() -> None:
    """Keep a core busy until it is stopped."""
    number = 0
    while True:
        number += 1


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within, so many processes work."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=work, daemon=True) for _ in range(count)]
    for one in others:
        one.start()
    time.sleep(1.0 if others else 0.0)  # until all of them have begun
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.join()


def contenders(place: str, tokens: int) -> dict[str, Callable[[], object]]:
    """By name, what reads one more token."""
    ours, theirs = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).eval() for _ in "ab")
    print(headwise.fast(ours))
    ids = torch.randint(3, ours.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    own, plain = headwise.Cache(ours), DynamicCache(config=theirs.config)
    headwise.prefill(ours, own, ids)
    forward(theirs, plain, ids, logits_to_keep=1)
    return {
        "headwise": lambda: forward(ours, own, ids[:, :1]),
        "transformers, sdpa": lambda: forward(theirs, plain, ids[:, :1]),
    }


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="processes beside it")
    parser.add_argument("--tokens", type=int, default=1024, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each, of 4 tokens")
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    rows = []
    with torch.no_grad():
        every = contenders(str(located(args.model)), args.tokens)
        for count in args.busy:
            times: dict[str, list[float]] = {name: [] for name in every}
            with busy(count):
                for turn in range(args.rounds):
                    for name in list(every) if turn % 2 else reversed(list(every)):
                        start = time.perf_counter()
                        for _ in range(4):
                            every[name]()
                        times[name].append((time.perf_counter() - start) / 4)
            medians = {name: statistics.median(own) for name, own in times.items()}
            rows.append({"busy": count, "seconds": medians})
            for name, seconds in medians.items():
                ratio = seconds / medians["transformers, sdpa"]
                print(f"{count} busy processes: {name:20} {1e3 * seconds:7.1f} ms a token, {ratio:.2f} x transformers'")
    if args.json:
        told = {"model": args.model, "tokens": args.tokens, "rows": rows, "machine": machine(), "versions": versions()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
