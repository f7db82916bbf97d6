"""Whether a small host learns a task sooner from a teacher's last layer: MiniLM beside its attention term alone, and
beside training from scratch for the same steps.

    python benchmarks/minilm.py --state out/minilm --json docs/data/minilm.json

The teacher has four layers, students have two, all of the same width and heads. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headwise.bench.provenance import machine, versions
from headwise.bench.statements import over_seeds
from headwise.files import write_json
from headwise.findings import Finding, as_data, part
from headwise.kept import once
from headwise.models.host import HostConfig
from headwise.models.host_training import Schedule, begin, train_host
from headwise.seams.transformers.load import quiet
from headwise.tasks.sequences import parse_sequence_task

TASK, SEEDS = "copy(16, length=32)", range(3)
TAUGHT, LEARNT = 200, 80  # steps of teacher and student
RATE, BATCH, HELD = 1e-2, 16, 64  # what both have alike
ARMS = {"MiniLM": "minilm('{teacher}')", "attention alone": "minilm('{teacher}', values=0.0)", "from scratch": ""}
COMMAND = "python benchmarks/minilm.py --state out/minilm --json docs/data/minilm.json"


def trained(depth: int, steps: int, seed: int, hooks: str, out: Path) -> dict[str, Any]:
    """A host of so many layers after so many steps: its right answers and its loss on sequences it never saw."""
    task = parse_sequence_task(TASK)
    config = HostConfig(
        "rope", vocab_size=task.vocabulary, hidden_size=32, num_hidden_layers=depth, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    schedule = Schedule(steps, BATCH, RATE, seed=seed, held=HELD)
    told = train_host(begin(config, schedule, TASK, hooks), schedule, task.sequence, out, lambda *place: None)
    return {name: told[name] for name in ("accuracy", "loss", "parameters")}


def of_seed(seed: int, taught: int, learnt: int) -> dict[str, Any]:
    """A teacher, and a student of each kind that begins with the same weights."""
    with TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        found = {"teacher": trained(4, taught, seed, "", teacher)}
        for arm, hooks in ARMS.items():
            found[arm] = trained(2, learnt, 100 + seed, hooks.format(teacher=teacher), Path(folder) / arm)
    return found


def finding(runs: list[dict[str, Any]]) -> Finding:
    """What they show of row 116."""
    own = machine()
    apart = {arm: over_seeds([run["MiniLM"]["loss"] - run[arm]["loss"] for run in runs]) for arm in ARMS}
    return Finding(
        row=116, says="A student of half the depth reaches a lower loss from attention and value relations than from "
        "attention alone, and than from scratch, after as many steps",
        host=f"4 and 2 layers of 32 channels and 4 heads, on {TASK}; {len(runs)} seeds", command=COMMAND,
        machine=f"{own['processor']}, {own['cores']} cores", date=date.today().isoformat(),
        parts=tuple(
            part(f"loss minus that of {arm}", apart[arm], arm, below=0.0) for arm in ("attention alone", "from scratch")
        ),
        leaves_out="training by the two terms without the task's loss, students of other widths, and language models",
    )  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("out/minilm"), help="Folder of finished seeds.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, nargs=2, default=[TAUGHT, LEARNT], help="Of teacher and student.")
    return parser


def main() -> None:
    """Train, print a line a seed, and write."""
    given = arguments().parse_args()
    quiet()
    given.state.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in SEEDS:
        runs.append(once(given.state, f"seed-{seed}-{given.steps}", partial(of_seed, seed, *given.steps)))
        print(
            f"seed {seed}: loss " + ", ".join(f"{arm} {told['loss']:.3f}" for arm, told in runs[-1].items()), flush=True
        )
    found = finding(runs)
    print(f"row {found.row}, {found.state}: {found.says}")
    told = {"machine": machine(), "versions": versions(), "command": COMMAND, "runs": runs}
    if given.json is not None:
        write_json(given.json, told | {"findings": as_data([found])})


if __name__ == "__main__":
    main()
