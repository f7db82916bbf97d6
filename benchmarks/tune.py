"""Tuned plans beside the best single methods of equal bytes, on documents that no plan was tuned on.

    python benchmarks/tune.py [--items 2] [--context 2048] [--out tune.json]

Tasks are of the test split: other text and other keys than the tuning split. At each budget: the ready plan, and at its
bytes random eviction, sinks + recent and every single method the tuner knows as a rival; beside them dense attention,
codecs alone, and the A/A control, which must write what dense wrote. The interval is of the paired difference of the
plan to the best rival, chosen on these same answers, which favours the rival.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwise.assets import embedded_model, embedded_plan
from headwise.bench.arms import CONTROL, Arm
from headwise.bench.cells.bench import Bench
from headwise.bench.cells.pool import Processes
from headwise.bench.cells.worker import Setting
from headwise.bench.judging.intervals import of_strata
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model, quiet
from headwise.tasks.taskbook import DEFAULT_TASKS
from headwise.tune.menu import RIVAL_CODECS, rivals

BUDGETS = (0.25, 0.1, 0.05)


def listed(plans: dict[float, Path], sentences: Sequence[str]) -> list[Arm]:
    """Every row that is measured; rivals are given a plan's own bytes, to the nearest page."""
    arms = [Arm("dense", "dense"), Arm("control", CONTROL), *(Arm("baseline", name) for name in RIVAL_CODECS)]
    for share, path in plans.items():
        plan = Arm("plan", str(path), peer=str(path), is_plan=True)
        arms += [plan, *(Arm("baseline", name, f"{share:g}", like=plan) for name in ("random", *sentences))]
    return arms


def scores(row: dict[str, Any]) -> list[list[float]]:
    """A row's scores by task, in the order of the tasks."""
    return [[one["score"] for one in row["tasks"][task]["samples"]] for task in sorted(row["tasks"])]


def _fits(row: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether a codec for all heads takes no more bytes than the plan."""
    return row["name"] in RIVAL_CODECS and row["of_dense"] <= plan["of_dense"]


def verdicts(result: dict[str, Any], plans: dict[float, Path]) -> list[str]:
    """For each budget the plan beside its best rival, with the paired difference."""
    rows = {row["name"]: row for row in result["rows"] if "tasks" in row}
    lines = []
    for share, path in plans.items():
        mine = rows[path.stem]
        best = max(
            (row for name, row in rows.items() if name.endswith(f" @ {share:g}") or _fits(row, mine)),
            key=lambda row: row["overall"]["mean"],
        )
        pairs = zip(scores(mine), scores(best), strict=True)
        gap = of_strata([[a - b for a, b in zip(one, other, strict=True)] for one, other in pairs])
        told = [f"{row['name']} {row['overall']['mean']:.3f} in {row['of_dense']:.1%}" for row in (mine, best)]
        lines.append(
            f"at {share:.0%} of dense bytes: {told[0]}; best rival {told[1]}; difference {gap.mean:+.3f} "
            f"[{gap.low:+.3f}, {gap.high:+.3f}]"
        )
    return lines


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT_TASKS))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--rivals", nargs="+", default=rivals())
    parser.add_argument("--plans", type=Path, help="a folder of plan-25.plan, ...; the ready ones if left out")
    parser.add_argument("--state", type=Path, help="where finished rows are kept, to go on after a kill")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    """Measure, print the table, and write the result."""
    told = arguments().parse_args()
    quiet()
    place = str(embedded_model())
    plans = {}
    for share in told.budgets:
        ready = told.plans / f"plan-{share * 100:g}.plan" if told.plans else embedded_plan(share)
        assert ready is not None, f"the package carries no plan for {share:.0%}"
        plans[share] = ready
    setting = Setting(place, attach(load_model(place)).fingerprint, "auto", "cpu", told.items, told.seed)
    bench = Bench(setting, tuple(listed(plans, told.rivals)), tuple(told.tasks), (told.context,))
    result = bench.run(executor=Processes(1), folder=told.state, watch=lambda *_: None, name="embedded")
    print(f"{'row':42} bytes of dense   score [95 %]")
    for row in result["rows"]:
        if "tasks" not in row:
            print(f"{row['name']:42} refused: {next(iter(row['refused'].values()))}")
            continue
        overall = row["overall"]
        interval = f"{overall['mean']:.3f} [{overall['low']:.3f}, {overall['high']:.3f}]"
        print(f"{row['name']:42} {row['of_dense']:14.1%}   {interval}")
    print("\n".join(verdicts(result, plans)))
    if told.out is not None:
        told.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
