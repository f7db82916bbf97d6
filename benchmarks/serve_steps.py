"""What the server's scheduler adds to a step: the share of its time, and of its Python calls, outside of forwards, at
several numbers of answers.

    python benchmarks/serve_steps.py --answers 8 32 --json steps.json

Times are the thread's own, on one core, so that what else the machine does is not in them; calls are the same on any
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from headwise.assets import embedded_model
from headwise.bench.calls import calls
from headwise.bench.provenance import machine
from headwise.compiled.fast import fast
from headwise.files import write_json
from headwise.seams.transformers.cache import as_plan, attach
from headwise.seams.transformers.load import load_pair, quiet
from headwise.seams.transformers.together import step_together
from headwise.serve.drafts import Drafting
from headwise.serve.metrics import Metrics
from headwise.serve.request import Request
from headwise.serve.rows import steady_rows
from headwise.serve.sampling import Sampling
from headwise.serve.scheduler import Limits, Scheduler
from headwise.serve.served import Defaults


def writing(model: Any, tokenizer: Any, answers: int, told: argparse.Namespace) -> Scheduler:
    """A scheduler with so many answers that are written, and no prompt that is read."""
    limits = Limits(4 << 30, sequences=answers, stall=1e9)
    how: Any = {
        "ends": (),
        "drafting": Drafting(Defaults().drafter()),
        "observe": Metrics().observe,
        "clock": time.thread_time,
    }
    made = Scheduler(model, tokenizer, limits, steady_rows(model), **how)
    plan = as_plan(attach(model), told.recipe)
    for seed in range(answers):
        ids = torch.randint(100, 1000, (told.tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
        request = Request(tuple(ids), plan, 2 * told.steps + answers + 1, Sampling(temperature=0.0), draft="auto")
        made.submit(request, lambda event: None)
    while made.stats().writing < answers:
        made.advance()
    return made


def shares(made: Scheduler, steps: int) -> list[tuple[float, float]]:
    """Of so many steps: milliseconds, and the share outside of forwards."""
    found, clock = [], made.clock
    for _ in range(steps):
        made.costs.step.known = False  # the next step's seconds alone
        start = clock()
        made.advance()
        took = clock() - start
        found.append((1000 * took, 1 - made.costs.step.value / took))
    return found


def table(told: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows as `headwise.cli.figures.Figures` reads them."""
    own = machine()
    cells = [
        [row["answers"], f"{row['step_ms']:.2f}", f"{row['outside']:.1%}", f"{row['calls_outside']:.1%}"]
        for row in rows
    ]
    return {
        "source": "benchmarks/serve_steps.py", "date": date.today().isoformat(), "model": Path(told.model).name,
        "command": f"python benchmarks/{Path(__file__).name} --answers {' '.join(map(str, told.answers))}",
        "machine": f"{own['processor']}, {own['cores']} cores",
        "columns": ["answers", "ms a step, of one core", "outside of forwards", "of its Python calls"], "rows": cells,
    }  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(embedded_model()))
    parser.add_argument("--answers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=256, help="of each prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--recipe", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="write the table of docs/serve.md to this file")
    return parser


def main() -> None:
    """Measure, print and write."""
    told = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    tokenizer, model = load_pair(told.model, "auto", "cpu", False)
    fast(model)
    rows = []
    for answers in told.answers:
        made = writing(model, tokenizer, answers, told)
        times, outside = zip(*shares(made, told.steps), strict=True)
        apart, within = calls(made.advance, step_together.__code__, told.steps)
        row = {"answers": answers, "step_ms": statistics.median(times), "outside": statistics.median(outside)}
        rows.append(row | {"calls": (apart + within) / told.steps, "calls_outside": apart / (apart + within)})
        print(
            "{answers:4} answers {step_ms:8.2f} ms a step, {outside:6.1%} outside of forwards; {calls:8.0f} calls, "
            "{calls_outside:6.1%} outside".format(**rows[-1])
        )
    if told.json is not None:
        about = {"model": told.model, "tokens": told.tokens, "recipe": told.recipe, "machine": machine()}
        told.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    if told.table is not None:
        write_json(told.table, table(told, rows))


if __name__ == "__main__":
    main()
