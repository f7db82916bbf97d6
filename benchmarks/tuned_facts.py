"""Facts asked after the eviction: which of dense answers do plans keep, beside single methods of their bytes?

    python benchmarks/tuned_facts.py MODEL --plans A.plan B.plan [--tokens 4096] [--documents 8] [--out FILE]

Documents are of the test split: other text, other keys than plans were tuned on; of each, sixteen facts are asked
about. No plan and no rival has seen a question when it evicts. Rivals are given each plan's own bytes. Intervals are of
a bootstrap over documents. What is finished is kept in --state, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
from datetime import date
from pathlib import Path

from lengths import documents

from headwise.bench.judging.intervals import of_strata
from headwise.bench.provenance import machine
from headwise.calibrate.answers import Answers, answer_score, dense_answers, mixture_score
from headwise.calibrate.shelf import shelved
from headwise.cli.commands.tune import cache_folder
from headwise.cli.figures import Figures
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.errors import RecipeError
from headwise.kept import once
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

TASKS = ("niah_multiquery(keys=16, queries=16)", "restated(keys=16, queries=16)")
RIVALS = (
    "random", "streaming", "keydiff | ada | balanced", "streaming | balanced", "snapkv | balanced",
    "expected_attention | balanced", "keydiff | balanced", "kvzip | balanced", "kvzip | ada | balanced",
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


def shares(right: list[list[int]]) -> tuple[float, float, float]:
    """Share of the answers kept over all documents, with its 95 % interval; right: by document, kept and known."""
    found = of_strata([[own / known for own, known in right if known]])
    return found.mean, found.low, found.high


def figures(rows: list[tuple[str, float, list[list[int]]]], args: argparse.Namespace) -> Figures:
    """The table of a page."""
    cells = [
        [f"`{name}`", f"{of_dense:.1%}", f"{sum(own for own, _ in right)} of {sum(known for _, known in right)}",
         "{:.3f} [{:.3f}, {:.3f}]".format(*shares(right))]
        for name, of_dense, right in rows
    ]  # fmt: skip
    plans = " ".join(path.name for path in args.plans)
    given = f"{args.model} --plans {plans} --tokens {args.tokens} --documents {args.documents}"
    told = machine()
    return Figures(
        source="a run of its own", model=args.model, machine=f"{told['processor']}, {told['cores']} cores",
        command=f"python benchmarks/tuned_facts.py {given}", date=date.today().isoformat(),
        columns=["", "bytes of dense", "answers kept", "share by document, 95 %"], rows=cells,
    )  # fmt: skip


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
    parser.add_argument("--out", type=Path, help="the table of a page, as JSON")
    return parser


def main() -> None:
    """A line for every row."""
    given = arguments().parse_args()
    quiet()
    model, tokenizer = load_model(given.model), load_tokenizer(given.model)
    plans = listed(given.plans, given.rivals, given.tokens, model)
    right: dict[str, list[list[int]]] = {name: [] for name in plans}
    for seed in range(given.seed, given.seed + given.documents):
        for recall in documents(tokenizer, list(TASKS), given.tokens, seed, asks=16):
            text = hashlib.sha256(repr((attach(model).fingerprint, recall.ids.tolist())).encode()).hexdigest()[:16]
            answers = dense_answers(model, recall)
            for name, plan in plans.items():
                key = f"facts-{text}-{plan.digest}"
                found = once(given.state, key, lambda plan=plan, a=answers: {"kept": kept(model, plan, a)})["kept"]
                right[name].append(found)
            print(f"{sum(known for _, known in right['dense'])} questions", flush=True)
    if not any(known for _, known in right["dense"]):
        raise SystemExit("dense attention knows none of the answers; use another model or --documents more")
    dense = attach(model).geometry.dense_bytes(given.tokens, model.dtype)
    rows = [
        (name, predicted_bytes(plan, given.tokens, model.dtype) / dense, right[name]) for name, plan in plans.items()
    ]
    for name, of_dense, own in rows:
        print(f"{name:60} {of_dense:6.1%} of bytes, {{:.1%}} kept [{{:.1%}}, {{:.1%}}]".format(*shares(own)))
    if given.out is not None:
        given.out.write_text(figures(rows, given).model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
