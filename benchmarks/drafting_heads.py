"""How often the guesses of drafting heads hit, beside untrained ones, and how many tokens a pass they bring.

    headwise train-drafter --kind medusa --out medusa.heads
    headwise train-drafter --kind clover --out clover.heads
    python benchmarks/drafting_heads.py "medusa('medusa.heads')" "clover('clover.heads')" lookup

Prompts are windows of the built-in novel that heads do not learn from, as `headwise train-drafter` cuts it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import headwise
from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.bench.provenance import machine
from headwise.decoding.headed import Headed
from headwise.decoding.heads.base import made
from headwise.decoding.heads.train import Lesson, hits, windows
from headwise.decoding.pace import Pace
from headwise.decoding.speculate import proposer, write
from headwise.seams.transformers.load import load_pair, quiet


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafts", nargs="+", help="Drafters, such as \"medusa('FILE', nodes=12)\" or lookup.")
    parser.add_argument("--model", default=str(embedded_model()))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """A line for every drafter."""
    given = arguments().parse_args()
    quiet()
    tokenizer, model = load_pair(given.model, "float32")  # in bfloat16 near ties fall either way
    _, others = windows([encode(tokenizer, novel(), start=True)[0]], Lesson("", window=given.window))
    rows = []
    for draft in given.drafts:
        guessing = proposer(model, draft)
        row: dict[str, object] = {"draft": draft}
        if isinstance(guessing, Headed):
            row["draft"] = guessing.trained.heads.kind  # without the path of its file
            trained = guessing.trained
            torch.manual_seed(0)
            control = hits(made(trained.heads.kind, model, trained.heads.depth), model, others[: given.prompts])
            row |= {"steps": trained.steps, "tokens": trained.tokens, "guesses": len(guessing.tree)}
            row |= {"hits": [[round(hit, 4) for hit in one] for one in trained.hits]}
            row |= {"untrained": [[round(hit, 4) for hit in one] for one in control]}
        brought = passes = same = 0
        for window in others[: given.prompts]:
            ids = window[None, : given.window // 2]
            plain, cache = headwise.Cache(model), headwise.Cache(model)
            want = headwise.decode(model, plain, headwise.prefill(model, plain, ids), given.new)
            logits, pace = headwise.prefill(model, cache, ids), Pace.drafted
            Pace.drafted = lambda own, tokens, seconds: None  # type: ignore[method-assign]  # counted, never switched off
            got = write(model, cache, logits, given.new, draft, ids)
            Pace.drafted = pace  # type: ignore[method-assign]
            assert cache.session is not None
            brought, passes = brought + got.shape[1] - 1, passes + cache.session.ledger.steps["decode"]
            same += got.tolist() == want.tolist()
        row |= {"prompts": given.prompts, "same_tokens": same, "tokens_per_pass": round(brought / passes, 3)}
        rows.append(row)
        print(" ".join(f"{name}={told}" for name, told in row.items()), flush=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(
            json.dumps({"model": Path(given.model).name, "machine": machine(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
