"""Facts asked after the eviction: which of dense answers do plans keep, beside single methods of their bytes?

    python benchmarks/tuned_facts.py MODEL --plans A.plan B.plan [--tokens 4096] [--documents 16] [--json FILE]

Documents are of the test split: other text, other keys than plans were tuned on; of each, sixteen facts are asked
about. No plan and no rival has seen a question when it evicts. Rivals are given each plan's own bytes. What is finished
is kept in --state, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from lengths import documents

from headwise.bench.judging.intervals import wilson
from headwise.calibrate.answers import Answers, answer_score, dense_answers, mixture_score
from headwise.calibrate.shelf import shelved
from headwise.cli.commands.tune import cache_folder
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.errors import RecipeError
from headwise.kept import once
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

TASKS = ("niah_multiquery(keys=16, queries=16)", "restated(keys=16, queries=16)")
RIVALS = (
    "random", "streaming", "snapkv", "expected_attention", "keydiff", "kvzip", "streaming | int(key=8, value=4)",
    "snapkv | int(key=8, value=4)", "kvzip | int(key=8, value=4)", "kvzip | balanced",
)  # fmt: skip
CODECS = ("int8", "int(key=8, value=4)", "balanced", "int4", "kivi")


def listed(paths: list[Path], rivals: list[str], tokens: int, model: PreTrainedModel) -> dict[str, Plan]:
    """Every row by name: dense, codecs alone, each plan, and what fits its bytes."""
    geometry = attach(model).geometry
    found = {name: Plan.uniform(geometry, name) for name in ("dense", *CODECS)}
    for path in paths:
        found[path.stem] = Plan.read(path)
        held = predicted_bytes(found[path.stem], tokens, model.dtype)
        for sentence in rivals:
            try:
                recipe = fitted(Plan.uniform(geometry, sentence), held, tokens, model.dtype)
            except RecipeError:
                continue  # its least is above the plan's bytes
            found[f"{sentence} @ {path.stem}"] = Plan.uniform(geometry, recipe)
    return found


def kept(model: PreTrainedModel, plan: Plan, answers: Answers) -> list[int]:
    """Answers kept, and how many dense attention knows."""
    recipes = {recipe for row in plan.recipes for recipe in row}
    found = mixture_score(answers, plan) if all(map(shelved, recipes)) else answer_score(model, plan, answers)
    return list(found.kept)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--plans", type=Path, nargs="+", default=[])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--documents", type=int, default=8, help="of each of two kinds")
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--state", type=Path, default=cache_folder())
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """A line for every row."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    model, tokenizer = load_model(given.model), load_tokenizer(given.model)
    plans = listed(given.plans, given.rivals, given.tokens, model)
    right = {name: [0, 0] for name in plans}
    for seed in range(given.seed, given.seed + given.documents):
        for recall in documents(tokenizer, list(TASKS), given.tokens, seed, asks=16):
            text = hashlib.sha256(repr((attach(model).fingerprint, recall.ids.tolist())).encode()).hexdigest()[:16]
            answers = dense_answers(model, recall)
            for name, plan in plans.items():
                key = f"facts-{text}-{plan.digest}"
                found = once(given.state, key, lambda plan=plan, a=answers: {"kept": kept(model, plan, a)})["kept"]
                right[name] = [a + b for a, b in zip(right[name], found, strict=True)]
            print(f"{right['dense'][1]} questions", flush=True)
    if not right["dense"][1]:
        raise SystemExit("dense attention knows none of the answers; use another model or --documents more")
    dense, rows = attach(model).geometry.dense_bytes(given.tokens, model.dtype), []
    for name, plan in plans.items():
        share = predicted_bytes(plan, given.tokens, model.dtype) / dense
        low, high = wilson(*right[name])
        rows.append(
            {"name": name, "of_dense": share, "kept": right[name][0], "known": right[name][1], "interval": [low, high]}
        )
        print(f"{name:48} {share:6.1%} of bytes, {right[name][0] / right[name][1]:6.1%} kept [{low:.1%}, {high:.1%}]")
    if given.json is not None:
        given.json.write_text(
            json.dumps({"model": Path(given.model).name, "tokens": given.tokens, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
