"""Memory of a long prompt read in chunks with eviction: peak of the cache's real storages, and growth of the process.

    python benchmarks/memory.py --model small --tokens 32768 --recipe "snapkv(0.1)"

Walks the storages of every layer at every chunk's end and takes the peak that the ledger saw inside the steps. The
bound is the plan's predicted bytes plus one chunk, uncompressed. The process is measured by the peak of its resident
set while the prompt is read, over what it was right before; a warm-up of one chunk has by then paid for the workspace.
A dense run in a process of its own stands beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from pathlib import Path

import models
import torch

import headwise
from headwise.bench.provenance import machine, versions
from headwise.cost.prediction import predicted_bytes
from headwise.plan import Plan
from headwise.seams.transformers.drive import prefill
from headwise.shapes import format_bytes


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes; the peak where the system says nothing else."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Begin VmHWM anew (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("warning: the peak of this process cannot be reset here; its growth is an upper bound")


def measure(model_name: str, recipe: str, tokens: int, chunk: int, threads: int) -> dict:
    """One recipe in this process."""
    if threads:
        torch.set_num_threads(threads)
    model = models.load(model_name, positions=max(65_536, tokens))
    ids = models.prompt(model, tokens)
    cache = headwise.Cache(model, recipe)
    prefill(model, headwise.Cache(model, recipe), ids[:, :chunk], None)  # pays for the workspace of one chunk
    geometry = cache.seam.geometry
    predicted = predicted_bytes(Plan.uniform(geometry, recipe), tokens, model.dtype)
    one_chunk = predicted_bytes(Plan.uniform(geometry, ""), chunk, model.dtype)
    held: list[int] = []
    forget_peak()
    before = resident("VmRSS")
    prefill(model, cache, ids, chunk, lambda done, total: held.append(cache.nbytes))
    grown = resident("VmHWM") - before
    peak = max(*held, cache.session.ledger.peak_bytes)
    return {
        "recipe": recipe or "dense",
        "tokens": tokens,
        "chunk": chunk,
        "dense_bytes": geometry.dense_bytes(tokens, model.dtype),
        "predicted_bytes": predicted,
        "one_chunk_bytes": one_chunk,
        "bound_bytes": predicted + one_chunk,
        "cache_bytes": cache.nbytes,
        "peak_cache_bytes": peak,
        "cache_bytes_by_chunk": held,
        "process_growth_bytes": grown,
        "within_bound": peak <= predicted + one_chunk,
    }


def apart(*arguments: object) -> dict:
    """`measure` in a fresh process, whose resident set is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help="embedded, 0.5b, small or tiny")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--recipe", default="snapkv(0.1)")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    """Measure the recipe and dense attention; print a table or JSON. Exit code 1 when the bound is exceeded."""
    options = arguments().parse_args()
    shared = (options.tokens, options.chunk, options.threads)
    rows = [apart(options.model, recipe, *shared) for recipe in (options.recipe, "")]
    if options.json:
        print(
            json.dumps({"model": options.model, "rows": rows, "versions": versions(), "machine": machine()}, indent=1)
        )
    else:
        print(f"{options.model}, {options.tokens} tokens in chunks of {options.chunk}")
        names = ("cache_bytes", "peak_cache_bytes", "bound_bytes", "process_growth_bytes", "dense_bytes")
        print(f"{'recipe':24}" + "".join(f"{name.removesuffix('_bytes').replace('_', ' '):>16}" for name in names))
        for row in rows:
            print(f"{row['recipe']:24}" + "".join(f"{format_bytes(row[name]):>16}" for name in names))
        print(f"peak cache within budget + one chunk: {'yes' if rows[0]['within_bound'] else 'NO'}")
    if not rows[0]["within_bound"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
