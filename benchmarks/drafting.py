"""What drafts bring on three tasks: tokens a pass, the share of guesses accepted, and seconds beside plain decoding.

    python benchmarks/drafting.py smollm2 --json docs/data/decode/drafting.json

The runs of a task take turns, and only their ratio is told: on a machine that does other work seconds mean little.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import headwise
from headwise.assets import novel
from headwise.bench.provenance import machine
from headwise.decoding.speculate import write
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

CODE = "\n".join(
    f"def step_{n}(value: int) -> int:\n    total = value * {n} + offset\n    return total % limit\n" for n in range(40)
)
TASKS = {
    "quotes": lambda text: f"{text}\n\nThe passage once more, word by word:\n\n{text[:200]}",
    "code": lambda text: f"{CODE}\n# The same functions, with `offset` renamed to `shift`:\n",
    "question": lambda text: f"{text}\n\nQuestion: Who is this passage about?\nAnswer:",
}


def measured(model: Any, ids: torch.Tensor, recipe: str, draft: str | None, new: int) -> tuple[list[int], float, Any]:
    """What is written after ids [1, n], the seconds of it, and the ledger."""
    cache = headwise.Cache(model, recipe)
    logits = headwise.prefill(model, cache, ids)
    start = perf_counter()
    if draft is None:
        written = headwise.decode(model, cache, logits, new)
    else:
        written = write(model, cache, logits, new, draft, ids)
    assert cache.session is not None
    return written[0].tolist(), perf_counter() - start, cache.session.ledger


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--characters", type=int, default=16_000)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--recipes", nargs="+", default=["", "snapkv(0.5) | int8"])
    parser.add_argument("--drafts", nargs="+", default=["lookup", "hierarchy"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """A line for every task, cache and drafter."""
    given = arguments().parse_args()
    quiet()
    tokenizer, model = load_tokenizer(given.model), load_model(given.model, "auto", "cpu")
    rows = []
    for task, prompt in TASKS.items():
        ids = tokenizer(prompt(novel()[: given.characters]), return_tensors="pt").input_ids
        for recipe in given.recipes:
            for draft in given.drafts:
                ratios = []
                for _ in range(given.repetitions):
                    plain, usual, _ = measured(model, ids, recipe, None, given.new)
                    tokens, seconds, ledger = measured(model, ids, recipe, draft, given.new)
                    ratios.append(usual / seconds)
                drafts, passes = ledger.drafts, ledger.steps["decode"]
                rows.append(
                    {
                        "task": task,
                        "prompt_tokens": ids.shape[1],
                        "recipe": recipe or "dense",
                        "draft": draft,
                        "same_tokens": tokens == plain,
                        "tokens_per_pass": round((len(tokens) - 1) / max(1, passes), 3),
                        "accepted": round(drafts["accepted"] / max(1, drafts["proposed"]), 3),
                        "ratio": round(sorted(ratios)[len(ratios) // 2], 3),
                        "off": bool(ledger.told),
                    }
                )
                print(" ".join(f"{name}={told}" for name, told in rows[-1].items()), flush=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"model": given.model, "machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
