"""`headwise fit` against what really happens: peak resident memory and seconds of a fresh process, over three models.

    python benchmarks/fit.py --models embedded small 0.5b --tokens 8000 8192 2048

Each prediction is made in a process of its own before the measuring one starts. Exit code 1 when a peak is off by more
than a tenth (`--within`). Times are shown, not judged: both sides of them depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import models
import torch
from memory import resident

import headwise
from headwise.assets import embedded_model
from headwise.bench.provenance import machine, versions
from headwise.cost.fit import CHUNK, Predictor
from headwise.cost.meta_model import MetaModel
from headwise.plan import Plan
from headwise.seams.transformers.drive import decode, prefill
from headwise.seams.transformers.load import load_meta, load_model, weight_bytes

NEW_TOKENS = 8


def predicted(folder: str, recipe: str, tokens: int) -> dict:
    """What `headwise fit` says."""
    torch.set_num_threads(1)
    meta = MetaModel(load_meta(folder))
    found = Predictor(meta, weight_bytes(folder, meta.model), Plan.uniform(meta.geometry, recipe)).fit(tokens)
    return found.as_json()


def measured(folder: str, recipe: str, tokens: int) -> dict:
    """What happens."""
    torch.set_num_threads(1)
    model = load_model(folder)
    cache = headwise.Cache(model, recipe)
    ids = models.prompt(model, tokens)
    start = time.perf_counter()
    logits = prefill(model, cache, ids, CHUNK)
    first = time.perf_counter()
    decode(model, cache, logits, NEW_TOKENS + 1)
    end = time.perf_counter()
    return {"peak": resident("VmHWM"), "prompt_s": first - start, "token_s": (end - first) / NEW_TOKENS}


def apart(work: object, *arguments: object) -> dict:
    """`work` in a fresh process, whose resident set is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def row(name: str, recipe: str, tokens: int) -> dict:
    """One model, predicted and measured."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "embedded":
            folder = str(embedded_model())
        else:
            models.load(name).save_pretrained(folder)
        told, found = apart(predicted, folder, recipe, tokens), apart(measured, folder, recipe, tokens)
    ratios = {key: told[key] / found[key] for key in ("peak", "prompt_s", "token_s")}
    return {"model": name, "recipe": recipe, "tokens": tokens, "predicted": told, "measured": found, "ratios": ratios}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded", "small", "0.5b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[8000, 8192, 2048], help="one for each model")
    parser.add_argument("--recipes", nargs="+", default=["", "snapkv(0.2)"])
    parser.add_argument("--within", type=float, default=0.1, help="how far a peak may be off")
    parser.add_argument("--json", type=Path, help="write the rows, versions and machine to this file")
    return parser


def main() -> None:
    """Print a line for each row, or JSON."""
    options = arguments().parse_args()
    rows = []
    for name, tokens in zip(options.models, options.tokens, strict=True):
        for recipe in options.recipes:
            one = row(name, recipe, tokens)
            rows.append(one)
            told, found, ratios = one["predicted"], one["measured"], one["ratios"]
            print(
                f"{name:9} {tokens:6} tokens {recipe or 'dense':12} peak {told['peak'] / 2**20:7.1f} MiB predicted, "
                f"{found['peak'] / 2**20:7.1f} measured ({ratios['peak'] - 1:+.1%}); prompt {told['prompt_s']:.2f} s, "
                f"{found['prompt_s']:.2f} (x{ratios['prompt_s']:.2f}); token {1000 * told['token_s']:.1f} ms, "
                f"{1000 * found['token_s']:.1f} (x{ratios['token_s']:.2f})",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "versions": versions(), "machine": machine()}, indent=1))
    far = [one for one in rows if abs(one["ratios"]["peak"] - 1) > options.within]
    if far:
        raise SystemExit(f"{len(far)} peaks are off by more than {options.within:.0%}")


if __name__ == "__main__":
    main()
