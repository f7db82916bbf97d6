"""Plans for prompts longer than any that was measured: which use of tables made at several shorter lengths is best?

    python benchmarks/scaling.py [--lengths 640 1024 1536] [--target 4096] [--shares 0.1 0.05] [--ceiling] [--state DIR]

A table of what each head can do without is made at every length, of one document of each kind (`headwise tune`'s own),
and a plan is chosen at the target's bytes by each rule: the longest length's table alone; the mean over lengths, and
the largest of tables brought to one size, which serve several lengths as MoA (2406.14909) asks of a plan; and
tables extrapolated to the target, cell by cell or by one growth for each candidate. Controls are as many documents of
the longest length alone (`again`), the table of the target itself (--ceiling) and the best single method of the plan's
bytes. Losses are measured on documents of the test split, as in benchmarks/lengths.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lengths import mean, tried

from headwise.assets import embedded_model
from headwise.bench.tuning import tuning_recalls
from headwise.caches import cache_folder
from headwise.cost.prediction import fitted
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet
from headwise.tasks.taskbook import DEFAULT_TASKS
from headwise.tune.knapsack import Floats
from headwise.tune.menu import default_menu
from headwise.tune.table import Table, measure
from headwise.tune.tuner import Tuner

RIVAL = "keydiff | int4"
LEAST = 1e-6  # nats, so that a loss of nothing has a logarithm
MOST = 3.0  # of a common growth's logarithm


def line(values: Floats, places: Floats, target: float) -> Floats:
    """Of values [lengths, ...] at `places`, the least-squares line's value at `target`."""
    design = np.stack([np.ones_like(places), places], 1)
    start, slope = np.linalg.lstsq(design, values.reshape(len(places), -1), rcond=None)[0]
    return (start + slope * target).reshape(values.shape[1:])


def rules(tables: Floats, lengths: list[int], target: int) -> dict[str, Floats]:
    """Losses [recipes, layers, heads] at the target by each rule, from tables [lengths, recipes, layers, heads]."""
    n, logs = np.array(lengths, dtype=np.float64), np.log(tables + LEAST)
    by_candidate = logs.mean((2, 3), keepdims=True)
    growth = line(by_candidate, np.log(n), np.log(target)) - by_candidate[-1]
    sized = tables / tables.mean((1, 2, 3), keepdims=True)
    return {
        f"table at {lengths[-1]}": tables[-1],
        "mean over lengths": tables.mean(0),
        "largest over lengths": sized.max(0),
        "each cell, line in n": line(tables, n, target).clip(0),
        "each cell, line in log n": line(tables, np.log(n), np.log(target)).clip(0),
        "each cell, power of n": np.exp(line(logs, np.log(n), np.log(target))),
        "each candidate, power of n": tables[-1] * np.exp(growth.clip(-MOST, MOST)),
    }


def table(
    model: PreTrainedModel, tokenizer: object, menu: list[Recipe], tokens: int, seeds: range, folder: Path
) -> Floats:
    """Losses [recipes, layers, heads] measured on one document of each kind and seed."""
    recalls = [one for seed in seeds for one in tuning_recalls(tokenizer, tokens, 1, seed)]
    return measure(model, recalls, menu, folder, lambda *_: None).losses.double().numpy()


def chosen(
    model: PreTrainedModel, menu: list[Recipe], losses: dict[str, Floats], target: int, share: float
) -> dict[str, Plan]:
    """A plan of each rule's choice at a share of the target's dense bytes, and the rival at as many."""
    found = {}
    for name, one in losses.items():
        tuner = Tuner(model, [], Table(tuple(menu), torch.from_numpy(one)), target)
        budget = int(share * tuner.dense_bytes)
        found[f"{share:.0%} {name}"] = tuner.chosen(budget)
    geometry = attach(model).geometry
    alike = fitted(Plan.uniform(geometry, RIVAL), budget, target, model.dtype)
    return found | {f"{share:.0%} {RIVAL}": Plan.uniform(geometry, alike)}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[640, 1024, 1536])
    parser.add_argument("--target", type=int, default=4096)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--menu", nargs="+", help="recipes to choose among; the tuner's own if left out")
    parser.add_argument("--ceiling", action="store_true", help="measure a table at the target too")
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT_TASKS), help="what the plans are tried on")
    parser.add_argument("--again", type=int, default=2, help="documents of each kind in the longest length's control")
    parser.add_argument("--state", type=Path, default=cache_folder(), help="where finished tables are kept")
    parser.add_argument("--seed", type=int, default=11)
    return parser


def main() -> None:
    """A line for every plan."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    place = str(embedded_model())
    model, tokenizer = load_model(place), load_tokenizer(place)
    menu = [Recipe.parse(one) for one in given.menu] if given.menu else default_menu()
    tables = np.stack([table(model, tokenizer, menu, one, range(1), given.state) for one in given.lengths])
    losses = rules(tables, given.lengths, given.target)
    longest = given.lengths[-1]
    losses[f"table at {longest}, again"] = table(model, tokenizer, menu, longest, range(given.again), given.state)
    if given.ceiling:
        losses[f"table at {given.target}"] = table(model, tokenizer, menu, given.target, range(1), given.state)
    plans: dict[str, Plan] = {}
    for share in given.shares:
        plans |= chosen(model, menu, losses, given.target, share)
    found = tried(model, tokenizer, plans, given.tasks, given.target, given.seed)
    for name, ones in found.items():
        print(f"{name:40} {mean(ones)}")


if __name__ == "__main__":
    main()
