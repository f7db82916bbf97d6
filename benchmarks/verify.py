"""What verifying guesses costs beside one token's step, and at which acceptance each kind of drafter pays.

    python benchmarks/verify.py --model 1b --contexts 32768 65536 --json docs/data/decode/verify.json

A random model of Llama-3.2-1B's shape; caches are filled as a prompt of that length would leave them. Of every cache:
the step of one token, a chain of 8 and a tree of 8, taking turns, as medians; the step of each recipe that might draft
over the same text; then, by the share of guesses that are right, tokens a pass and speed beside plain decoding,
computed of the medians (`expected`) and with planted guesses (`planted`): the text is known, and each guess is spoilt
by chance. Where planted guesses do not pay, drafting may switch itself off meanwhile, as it does for users.
With --folder it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import models
import torch
from transformers import PreTrainedModel

import headwise
from headwise.bench.provenance import machine
from headwise.compiled.fast import fast
from headwise.cost.pace import primed
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.speculate import write
from headwise.forms import Tree
from headwise.kept import once
from headwise.seams.transformers.forward import forward

NODES = 8  # tokens that are verified together, the certain one included
PLANTED = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # shares of guesses that are right
TREE = Tree((-1, 0, 0, 0, 1, 1, 2, 4))  # three ways to go on, the likeliest of them three deep
CHAIN = Tree(range(-1, NODES - 1))


class Planted(Proposer):
    """Guesses of a text [n] that is known, each wrong by chance."""

    def __init__(self, text: torch.Tensor, start: int, acceptance: float, seed: int = 0) -> None:
        self.text, self.start, self.acceptance, self.random = text.tolist(), start, acceptance, Random(seed)

    def propose(self, written: Written) -> Draft:
        place = len(written.ids) - self.start
        known = self.text[place : place + min(NODES - 1, written.most)]
        return Draft(
            [one if self.random.random() < self.acceptance else one + 1 if one == 0 else one - 1 for one in known]
        )


def step(model: PreTrainedModel, cache: headwise.Cache, tree: Tree | None) -> float:
    """Seconds of one step, of one token, or over a tree of which the first token stays."""
    tokens = 1 if tree is None else len(tree.parents)
    ids, place = torch.randint(3, model.config.vocab_size, (1, tokens)), cache.get_seq_length()
    depths = torch.zeros(1, dtype=torch.long) if tree is None else torch.tensor(tree.depths)
    start = time.perf_counter()
    with torch.no_grad():
        if tree is None:
            forward(model, cache, ids, position_ids=depths[None] + place)
        else:
            with cache.drafted(tree):
                forward(model, cache, ids, position_ids=depths[None] + place)
            cache.accept([0])
    return time.perf_counter() - start


def medians(model: PreTrainedModel, cache: headwise.Cache, repetitions: int) -> dict[str, float]:
    """Median seconds of each kind of step, which take turns; the first round is a warm-up."""
    arms: dict[str, Tree | None] = {"one token": None, "chain of 8": CHAIN, "tree of 8": TREE}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repetitions + 1):
        for name, tree in arms.items():
            while tree is not None and cache.room < NODES:
                step(model, cache, None)
            seconds = step(model, cache, tree)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(one) for name, one in times.items()}


def brought(acceptance: float, guesses: int = NODES - 1) -> float:
    """Tokens a pass over a chain brings, where each guess is right by that chance."""
    return sum(acceptance**count for count in range(guesses + 1))


def curve(found: dict[str, float], drafting: float) -> list[dict[str, float]]:
    """By acceptance: tokens a pass, and the speed beside plain decoding where a guess costs `drafting` seconds."""
    plain, verified = found["one token"], found["chain of 8"]
    rows = []
    for acceptance in [share / 20 for share in range(21)]:
        tokens = brought(acceptance)
        speed = tokens * plain / (verified + (NODES - 1) * drafting)
        rows.append({"acceptance": acceptance, "tokens": round(tokens, 3), "speed": round(speed, 3)})
    return rows


def pays_from(rows: list[dict[str, float]]) -> float | None:
    """The least acceptance at which drafting is no slower, or None."""
    return next((row["acceptance"] for row in rows if row["speed"] >= 1), None)


def planted(model: PreTrainedModel, cache: headwise.Cache, tokens: int, new: int, acceptance: float) -> dict[str, Any]:
    """Measured with guesses of which so many are right, beside plain decoding just before."""
    torch.manual_seed(0)
    prompt = torch.randint(3, model.config.vocab_size, (1, tokens))
    logits = torch.randn(1, model.config.vocab_size)
    start = time.perf_counter()
    text = headwise.decode(model, cache.fork(), logits, new)[0]
    middle, other = time.perf_counter(), cache.fork()
    got = write(model, other, logits, new, Planted(text, tokens, acceptance), prompt)[0]
    seconds = time.perf_counter() - middle
    assert other.session is not None
    return {
        "acceptance": acceptance, "tokens": round((len(got) - 1) / other.session.ledger.steps["decode"], 3),
        "speed": round((middle - start) / seconds, 3), "same_tokens": got.tolist() == text.tolist(),
    }  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1b", choices=sorted(models.SHAPES))
    parser.add_argument("--contexts", type=int, nargs="*", default=[32_768, 65_536])
    parser.add_argument("--recipes", nargs="+", default=["", "int8"], help="Caches that are verified over.")
    parser.add_argument("--drafters", nargs="*", default=["streaming(512)", "quest(1024)", "int4"])
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--folder", type=Path, help="Where what is measured is kept, so that a run goes on.")
    parser.add_argument("--json", type=Path)
    return parser


class Measured:
    """What is measured over the caches of one length, each of them made when it is first asked for."""

    def __init__(self, model: PreTrainedModel, tokens: int, given: argparse.Namespace) -> None:
        self.model, self.tokens, self.given = model, tokens, given
        self.caches: dict[str, headwise.Cache] = {}

    def cache(self, recipe: str) -> headwise.Cache:
        if recipe not in self.caches:
            self.caches = {recipe: primed(self.model, recipe, self.tokens)}  # one at a time is held
        return self.caches[recipe]

    def once(self, recipe: str, what: str, make: Callable[[headwise.Cache], dict[str, Any]]) -> dict[str, Any]:
        """What `make` finds over the cache of a recipe, unless it was kept."""
        setting = f"{self.given.model} {self.given.steps} {self.given.new} {self.tokens} {recipe} {what}"
        key = f"{self.tokens}-{hashlib.sha256(setting.encode()).hexdigest()[:16]}"
        return once(self.given.folder, key, lambda: make(self.cache(recipe)))

    def steps(self, recipe: str) -> dict[str, float]:
        """Median seconds of each kind of step."""
        return self.once(recipe, "steps", lambda cache: medians(self.model, cache.fork(), self.given.steps))

    def planted(self, recipe: str, acceptance: float) -> dict[str, Any]:
        """See `planted`."""
        return self.once(
            recipe, f"planted {acceptance}",
            lambda cache: planted(self.model, cache, self.tokens, self.given.new, acceptance),
        )  # fmt: skip


def main() -> None:
    """A table for every length and cache."""
    given = arguments().parse_args()
    model = models.load(given.model, positions=2 * max(given.contexts), dtype=torch.bfloat16)
    print(fast(model))
    found = []
    for tokens in given.contexts:
        measured = Measured(model, tokens, given)
        costs = {name: measured.steps(name)["one token"] for name in given.drafters}
        found += [told(measured, recipe, costs) for recipe in given.recipes]
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(found, given), indent=1) + "\n")


def told(measured: Measured, recipe: str, costs: dict[str, float]) -> dict[str, Any]:
    """Everything of one cache, printed as it is found. costs: seconds of a drafted token, by drafter."""
    steps = measured.steps(recipe)
    row: dict[str, Any] = {"tokens": measured.tokens, "cache": recipe or "dense", "seconds": steps, "drafters": {}}
    row["ratios"] = {name: round(steps[name] / steps["one token"], 3) for name in ("chain of 8", "tree of 8")}
    print(f"\n{measured.given.model}, {measured.tokens} tokens, cache {row['cache']}: " + ", ".join(
        f"{name} {ratio} x one token's step" for name, ratio in row["ratios"].items()), flush=True)  # fmt: skip
    for name, cost in {"guesses that cost nothing": 0.0, **costs}.items():
        rows = curve(steps, cost)
        row["drafters"][name] = {"seconds": cost, "pays_from": pays_from(rows), "expected": rows}
        print(f"  {name:28} pays from an acceptance of {row['drafters'][name]['pays_from']}", flush=True)
    row["planted"] = []
    for acceptance in PLANTED:
        row["planted"].append(measured.planted(recipe, acceptance))
        print("  planted " + " ".join(f"{name}={value}" for name, value in row["planted"][-1].items()), flush=True)
    return row


def figures(found: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """A table for the docs: what verifying costs beside one token's step, and from which acceptance drafters pay."""
    drafters = ["guesses that cost nothing", *given.drafters]
    rows = []
    for one in found:
        ratios = [f"{one['ratios'][name]:.2f} x" for name in ("chain of 8", "tree of 8")]
        pays = [one["drafters"][name]["pays_from"] for name in drafters]
        told = ["never" if least is None else f"{100 * least:.0f} %" for least in pays]
        rows.append(
            [str(one["tokens"]), one["cache"], *ratios, *told, *(f"{row['speed']:.2f} x" for row in one["planted"])]
        )
    sizes = f"--model {given.model} --contexts {' '.join(map(str, given.contexts))} --steps {given.steps}"
    return {
        "source": f"a random model of shape {given.model}, medians of {given.steps} steps that take turns",
        "command": f"python benchmarks/{Path(__file__).name} {sizes}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
        "model": given.model, "rows": rows,
        "columns": ["text", "cache", "a chain of 8", "a tree of 8", *(f"{name} pays from" for name in drafters),
                    *(f"{100 * share:.0f} % right" for share in PLANTED)],
    }  # fmt: skip


if __name__ == "__main__":
    main()
