"""A cache several times the memory it may take: what the process really holds, and bytes moved for each token.

    python benchmarks/tiers.py --tokens 8000 --resident 15MiB

Each row is a process of its own. Growth is the peak of its resident set while it decodes, over what it held before the
prompt; a warm-up of one chunk has by then paid for the workspace. Exit code 1 when a recipe writes other tokens from
the file than from memory, or holds more than the cap allows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import models
import torch
from memory import forget_peak, resident

import headwise
from headwise.assets import novel
from headwise.bench.provenance import machine, versions
from headwise.seams.transformers.drive import decode, prefill
from headwise.seams.transformers.load import load_tokenizer
from headwise.shapes import format_bytes, parse_bytes

CHUNK, NEW_TOKENS = 1024, 16


def measure(recipe: str, tokens: int, cap: str | None, dtype: str) -> dict:
    """One recipe in this process, over the embedded model and the built-in novel."""
    torch.set_num_threads(1)
    model = models.load("embedded", dtype=getattr(torch, dtype))
    ids = load_tokenizer(models.embedded_model())(novel()[: 8 * tokens], return_tensors="pt").input_ids[:, :tokens]
    warm = headwise.Cache(model, recipe)
    decode(model, warm, prefill(model, warm, ids[:, :CHUNK], CHUNK), 2)
    del warm
    before = resident("VmRSS")
    cache = headwise.Cache(model, recipe, resident=cap)
    logits = prefill(model, cache, ids, CHUNK)
    forget_peak()
    wrote = decode(model, cache, logits, NEW_TOKENS)[0].tolist()
    session, ledger = cache.session, cache.session.ledger
    near = [part.pages.swap for group in session.groups for part in group.store.parts] if cap else []
    return {
        "recipe": recipe or "dense",
        "resident": cap,
        "tokens": tokens,
        "wrote": wrote,
        "grown_bytes": resident("VmHWM") - before,
        "cache_bytes": cache.nbytes,
        "near_bytes": sum(plane.untyped_storage().nbytes() for swap in near for plane in swap.planes.values()),
        "far_bytes": sum(swap.backing.nbytes for swap in near),
        "moved_per_prompt_token": ledger.moved_per_token("prefill"),
        "moved_per_token": ledger.moved_per_token("decode"),
    }


def apart(*arguments: object) -> dict:
    """`measure` in a fresh process, whose resident set is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--resident", default="15MiB")
    parser.add_argument(
        "--recipes", nargs="+", default=["", "exact_topk(256)", "quest(256)", "quest(256, skip_layers=0)"]
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path, help="write the rows, versions and machine to this file")
    return parser


def main() -> None:
    """Print a line for each row, or JSON."""
    options = arguments().parse_args()
    rows, wrong = [], []
    for recipe in options.recipes:
        near, far = (apart(recipe, options.tokens, cap, options.dtype) for cap in (None, options.resident))
        rows += [near, far]
        same = near["wrote"] == far["wrote"]
        told = {key: format_bytes(far[key]) for key in far if key.endswith("bytes") or key.startswith("moved")}
        print(
            f"{far['recipe']:26} grown {format_bytes(near['grown_bytes'])} in memory, {told['grown_bytes']} with "
            f"{told['near_bytes']} near of {options.resident} ({told['cache_bytes']} held, {told['far_bytes']} in the "
            f"file); moved {told['moved_per_prompt_token']} a prompt token, {told['moved_per_token']} a new one; "
            f"{'same' if same else 'OTHER'} tokens",
            flush=True,
        )
        if not same or far["near_bytes"] > parse_bytes(options.resident):
            wrong.append(far["recipe"])
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "versions": versions(), "machine": machine()}, indent=1))
    if wrong:
        raise SystemExit(f"other tokens or more than the cap: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
