"""The highest sparsity that costs nothing, task by task: prompts and decoding, methods beside chance (The Sparse
Frontier, arXiv 2504.17768).

    python benchmarks/frontier.py embedded --state out/frontier --json docs/data/real/frontier.json

A method's sparsity is the share of dense attention's work that it leaves out, as measured: pairs of a prompt, or of
decoding the bytes that are held or the tokens that are read. On a task, the highest sparsity is the largest of those
tried at which the paired interval over documents still holds dense attention's score. A killed run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from headwise.bench.judging.frontier import Trial, highest_sparsities
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.provenance import machine
from headwise.claims.claim import Asked, Equal
from headwise.claims.equal import fitted
from headwise.claims.hosts.pretrained import Pretrained
from headwise.claims.on_host import OnHost, Runs
from headwise.cli.progress import Watcher
from headwise.errors import HeadwiseError
from headwise.files import write_json
from headwise.findings import Finding, as_data, part

TASKS = (
    "niah_single", "niah_multikey", "niah_multiquery", "kv_recall", "restated", "five_turns", "trace_first",
    "trace_steps", "induction",
)  # fmt: skip
SHARES = (0.5, 0.25, 0.1, 0.05)  # of dense attention's work


@dataclass(frozen=True)
class Way:
    """A method with the number that is fitted, whose work it spares and how questions are put."""

    method: str
    phase: str
    sentence: str
    equal: Equal
    asked: Asked


WAYS = (
    Way("vertical-slash", "prefill", "vertical_slash({count}, slashes=64)", "pairs", "along"),
    Way("block-sparse", "prefill", "block_sparse(blocks={count}, size=16)", "pairs", "along"),
    Way("FlexPrefill", "prefill", "flex_prefill({share}, least=16, size=16)", "pairs", "along"),
    Way("random blocks", "prefill", "bigbird(first=1, local=1, drawn={count}, size=16)", "pairs", "along"),
    Way("SnapKV", "decode", "snapkv({share}, kernel=15)", "bytes held", "before"),
    Way("Ada-SnapKV", "decode", "snapkv({share}, kernel=15) | ada", "bytes held", "before"),
    Way("Quest", "decode", "quest({share})", "tokens read", "after"),
    Way("random tokens", "decode", "random({share})", "bytes held", "before"),
)
CHANCE = {"prefill": "random blocks", "decode": "random tokens"}


def tried(stage: OnHost, way: Way, shares: Sequence[float], documents: int) -> list[Trial]:
    """The method at every share that it can be fitted to: scores are shares of right answers, document by document."""
    found = {}
    for share in shares:
        try:
            sentence = fitted(way.sentence, share, lambda one: stage.cost(way.equal, way.asked, one))
        except HeadwiseError:  # it cannot do with as little, or takes no such number
            continue
        stage.measure_all(way.asked, ["", sentence], range(documents))
        costs = [stage.measured(way.asked, n, sentence).costs[way.equal] for n in range(documents)]
        scores = answered(stage, way.asked, sentence, documents)
        found[sentence] = Trial(way.method, way.phase, round(1 - sum(costs) / documents, 4), {way.asked: scores})
    return list(found.values())


def answered(stage: OnHost, asked: Asked, sentence: str, documents: int) -> list[float]:
    """By document, the share of all questions that are answered right."""
    every = [stage.measured(asked, number, sentence).right for number in range(documents)]
    return [sum(right) / len(right) for right in every]


def of_task(given: argparse.Namespace, task: str, runs: Runs) -> dict[str, float]:
    """By method, the highest sparsity on a task."""
    name, documents = given.model, given.documents
    dtype = "float32" if name == "embedded" else "bfloat16"
    about = f"{name} on the task {task}"
    host = Pretrained(f"{name}_{task}", about, model_name=name, tasks=(task,), context=given.context, dtype=dtype)
    stage, found = OnHost(host, runs), {}
    for way in WAYS:
        trials = tried(stage, way, given.shares, documents)
        dense: dict[str, list[float]] = {way.asked: answered(stage, way.asked, "", documents)}
        found[way.method] = max((one.sparsity for one in highest_sparsities(dense, trials)), default=0.0)
    return found


def finding(given: argparse.Namespace, highest: Mapping[str, Mapping[str, float]]) -> Finding:
    """What row 240 comes to. highest: by task and method."""
    methods = {phase: [way.method for way in WAYS if way.phase == phase and way.method != CHANCE[phase]]
               for phase in CHANCE}  # fmt: skip
    tasks = list(highest.values())
    means = {phase: [sum(one[method] for method in own) / len(own) for one in tasks] for phase, own in methods.items()}
    chance = [sum(one[method] for method in CHANCE.values()) / len(CHANCE) for one in tasks]
    both = [(one + other) / 2 for one, other in zip(means["prefill"], means["decode"], strict=True)]
    wins = {method: [float(one[method] == max(one[m] for own in methods.values() for m in own)) for one in tasks]
            for own in methods.values() for method in own}  # fmt: skip
    best = max(wins, key=lambda method: sum(wins[method]))
    found = machine()
    return Finding(
        row=240,
        says="methods leave out more than chance may before a task is certainly worse, decoding more than prompts, and "
        "no single method leaves out most on every task",
        host=f"{given.model}, {len(tasks)} tasks of {given.context:,} tokens",
        command=f"python benchmarks/{Path(__file__).name} {given.model} --documents {given.documents} "
        "--state out/frontier",
        machine=f"{found['processor']}, {found['threads']} thread",
        date=date.today().isoformat(),
        parts=(
            part("highest sparsity, mean over methods", over(both, chance), control="as much left out by chance",
                 above=0.0),
            part("highest sparsity of decoding less that of prompts", over(means["decode"], means["prefill"]),
                 above=0.0),
            part(f"share of tasks on which {best}, the best method, leaves out most", of_scores(wins[best]), below=1.0),
        ),
        leaves_out="isoFLOPS curves over sizes of model",
    )  # fmt: skip


def over(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """Paired differences over tasks."""
    return of_strata([[one - other for one, other in zip(ones, others, strict=True)]])


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--documents", type=int, default=64, help="Of a task.")
    parser.add_argument("--context", type=int, default=1000, help="Tokens of a document with a question.")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="Of dense attention's work.")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--state", type=Path, required=True, help="Folder of finished work.")
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Measure task by task, print the table, judge."""
    given = arguments().parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    highest = {}
    with Watcher() as watch:
        for task in given.tasks:
            highest[task] = of_task(given, task, Runs(given.state, watch))
            told = ", ".join(f"{method} {sparsity:.0%}" for method, sparsity in highest[task].items())
            print(f"{task}: {told}", flush=True)
    found = finding(given, highest)
    print(f"row 240: {found.state}")
    if given.json is not None:
        rows = [[task, *(f"{by_method[way.method]:.0%}" for way in WAYS)] for task, by_method in highest.items()]
        columns = ["task", *(f"{way.method}, {way.phase}" for way in WAYS)]
        facts = {"source": f"{given.documents} documents a task", "command": found.command, "machine": found.machine,
                 "date": found.date, "model": given.model, "columns": columns, "rows": rows}  # fmt: skip
        write_json(given.json, facts | {"findings": as_data([found])})


if __name__ == "__main__":
    main()
