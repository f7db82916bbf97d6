"""Does the tuner know what a plan will lose? Predicted and measured loss of plans of all sizes, as rank correlations.

    python benchmarks/tuning_rank.py MODEL [--plans 30] [--tokens 2048] [--documents 1] [--state DIR] [--json FILE]

Plans are drawn, not chosen: a share of the heads, from none to all, is given recipes of one, two, three or all kinds of
the menu. Each is predicted by the first-order estimates and by the prices that the tuner measured head by head, before
any plan was measured, and then measured: nats by answer token from dense attention on planted facts that it knows, and
the share of its answers that are kept. What is finished is kept in --state, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from lengths import documents

from headwise.bench.protocol import digest
from headwise.calibrate.answers import dense_answers
from headwise.cli.commands.tune import cache_folder
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet
from headwise.tune.prices import alone
from headwise.tune.table import measure
from headwise.tune.tuner import Tuner

MENU = (
    "dense", "int8", "int(key=8, value=4)", "balanced", "int4", "kivi", "int2", "streaming(0.03)", "snapkv(0.1)",
    "expected_attention(0.3)", "streaming(0.03) | int(key=8, value=4)", "snapkv(0.1) | balanced",
)  # fmt: skip
TASKS = ('niah_multiquery(keys=16, queries=16, split="tune")', 'restated(keys=16, queries=16, split="tune")')
KINDS = (1, 2, 3, len(MENU) - 1)  # of recipes beside dense attention in a plan


def drawn(tuner: Tuner, count: int, seed: int) -> list[Plan]:
    """Plans from nearly dense to nothing dense, of few kinds of recipes and of many."""
    draw, geometry, found = Random(seed), tuner.seam.geometry, []
    for _ in range(count):
        touched, kinds = draw.random(), draw.choices(range(1, len(tuner.table.menu)), k=draw.choice(KINDS))
        rows = [
            tuple(tuner.candidate(draw.choice(kinds) if draw.random() < touched else 0, layer) for _ in range(heads))
            for layer, heads in enumerate(geometry.kv_heads)
        ]
        found.append(Plan(geometry, tuple(rows), tuner.seam.fingerprint))
    return found


def ranks(values: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Ranks, the mean one for equal values."""
    order = np.array(values)
    return np.array([np.mean(order < one) + np.mean(order <= one) for one in order])


def correlation(ones: list[float], others: list[float]) -> float:
    """Spearman's."""
    return float(np.corrcoef(ranks(ones), ranks(others))[0, 1])


def told(watched: str, done: int, total: int) -> None:
    """A line now and then."""
    if total and done % 10 == 0:
        print(f"  {watched}: {done} of {total}", flush=True)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--documents", type=int, default=1, help="of each of two kinds")
    parser.add_argument("--menu", nargs="+", default=list(MENU), help="recipes, the first of them dense")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=cache_folder())
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """A line for every plan, then the correlations."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    model, tokenizer = load_model(given.model), load_tokenizer(given.model)
    seeds = range(given.seed, given.seed + given.documents)
    recalls = [one for seed in seeds for one in documents(tokenizer, list(TASKS), given.tokens, seed, asks=16)]
    read = [answers for recall in recalls if (answers := dense_answers(model, recall)).tells]
    if not read:
        raise SystemExit("dense attention knows too few of the answers for plans to lose any; use another model")
    data = digest([attach(model).fingerprint, [[one.ids.tolist(), str(one.asked)] for one in recalls]])
    table = measure(model, [one.recall for one in read], [Recipe.parse(one) for one in given.menu], given.state, told)
    first = Tuner(model, read, table, given.tokens, folder=given.state / f"rank-{data}")
    tuner, rows = alone(first, told), []
    for plan in drawn(tuner, given.plans, given.seed):
        found = tuner.lost(plan)
        rows.append({"first_order": first.predicted(plan), "priced": tuner.predicted(plan), **found})
        print(" ".join(f"{name} {value:8.4f}" for name, value in rows[-1].items()), flush=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    predictors = ("first_order", "priced")
    result = {
        "model": Path(given.model).name, "plans": len(rows), "tokens": given.tokens, "rows": rows,
        "known": sum(sum(one.known) for one in read),
        "spearman": {name: correlation(columns[name], columns["loss"]) for name in predictors},
        "spearman_kept": {name: -correlation(columns[name], columns["kept"]) for name in (*predictors, "loss")},
    }  # fmt: skip
    for name, value in result["spearman"].items():
        print(f"rank correlation of {name} with measured loss over {len(rows)} plans: {value:.3f}")
    for name, value in result["spearman_kept"].items():
        print(f"rank correlation of {name} with answers lost: {value:.3f}")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
