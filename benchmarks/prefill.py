"""Sparse prefill beside our own dense kernel, index building included, where a pattern holds 95 % of the attention.

    python benchmarks/prefill.py --lengths 8192 32768 131072 --json out/prefill.json
    python benchmarks/prefill.py --on planted --lengths 2048 4096 --methods vertical_slash flex_prefill --repetitions 1

Every KV head is given the sparsest setting of a method at which the pattern holds the share `--mass` of its attention,
over rows sampled evenly; a head that no setting serves gets the fullest, and the row says how many there are. That plan
is timed against dense attention, the arms taking turns. The last row gives each head what reads it soonest, dense
attention included.

planted: one layer of a 1B model's shape (8 KV heads, 4 query heads each, width 64, bfloat16). Two KV heads (`--each`)
of each kind of `KINDS`; their attention goes, in about the shares given there, to 4 sinks, to a window (about 128
tokens wide, made of cosines of the distance as rotary embedding makes it, with the faint diagonals that come with it),
to 64 columns drawn at random, and to segments of 128 tokens on the topic, of 28, that the query's segment asks for;
else to noise.

embedded: the whole embedded model reads the novel.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import models
import torch
from transformers import AutoTokenizer, PreTrainedModel

import headwise
from headwise.assets import embedded_model, novel
from headwise.attention import View, attend
from headwise.bench.job import encode
from headwise.bench.provenance import machine, versions
from headwise.calibrate.look import observe
from headwise.forms import Causal, Scoring, Where
from headwise.observe import Observer
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import prefill

WIDTH, GROUP, SINKS, SPREAD, COLUMNS, SEGMENT, TOPICS = 64, 4, 4, 128, 64, 128, 28
KINDS = {  # shares of attention: sinks, window, columns, topic; the rest falls on all keys alike
    "local": (0.30, 0.67, 0.00, 0.00),
    "columns": (0.20, 0.25, 0.52, 0.00),
    "topic": (0.20, 0.20, 0.00, 0.57),
    "mixed": (0.20, 0.30, 0.25, 0.22),
}
BY_HEAD = "the quickest by head"
SAMPLED, ROWS = 16, 8  # stretches of rows whose attention is looked at, and rows of each


def settings(name: str, n: int) -> list[str]:
    """Sentences of one method for n tokens, the sparsest first; the default alone where no knob trades mass."""
    shares = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
    ladders: dict[str, list[str]] = {
        "a_shape": [f"a_shape(64, window={round(x * n)})" for x in shares],
        "bigbird": [f"bigbird(drawn={max(1, round(x * n / 64))})" for x in shares],
        "block_sparse": [f"block_sparse({max(2, round(x * n / 64))})" for x in shares],
        "dhsa": [f"dhsa({round(x * n)})" for x in shares],
        "grid": [f"grid(nearest={round(x * n)})" for x in shares],
        "flex_prefill": [f"flex_prefill({x})" for x in (0.9, 0.95, 0.98, 0.99)],
        "hip": [f"hip({max(64, round(x * n))})" for x in shares],
        "prflash": [f"prflash({x})" for x in (0.05, 0.2, 0.5, 0.9)],
        "sale": [f"sale({x})" for x in (0.064, 0.016, 0.004, 0.001)],
        "seer": [f"seer({x / n})" for x in (64, 16, 4, 1)],
        "vertical_slash": [f"vertical_slash({round(x * n / 4)}, slashes={max(100, round(x * n))})" for x in shares],
        "xattention": [f"xattention({x})" for x in (0.9, 0.95, 0.98, 0.99)],
        "zipvl": [f"zipvl({x})" for x in (0.95, 0.975, 0.99)],
    }
    return ladders.get(name, [name])


def planted(n: int, each: int) -> View:
    """Queries, keys and values of n tokens as described above, as a prefill method sees them."""
    random = torch.Generator().manual_seed(0)
    kinds = [kind for kind in KINDS.values() for _ in range(each)]
    place, segments = torch.arange(n), -(-n // SEGMENT)
    topics = torch.randint(TOPICS, (2, segments), generator=random).repeat_interleave(SEGMENT, 1)[:, :n]
    asked, about = torch.nn.functional.one_hot(topics, TOPICS).float()
    turns = torch.erfinv((torch.arange(16) + 0.5) / 16) * math.sqrt(2) / SPREAD  # of a Gaussian, evenly likely
    angles = place[:, None] * turns
    queries, keys = torch.zeros(len(kinds), n, WIDTH), torch.zeros(len(kinds), n, WIDTH)
    for head, shares in enumerate(kinds):
        whole = n / (1 - sum(shares))  # what the softmax divides by: noise keys weigh 1 each
        counts = (SINKS, SPREAD * math.sqrt(math.pi / 2), COLUMNS, n / TOPICS)
        sink, near, column, same = (math.log(max(1.0, x * whole / m)) for x, m in zip(shares, counts, strict=True))
        queries[head] = torch.cat((angles.cos(), angles.sin(), torch.ones(n, 2), asked, torch.zeros(n, 2)), 1)
        keys[head, :, :32], keys[head, :, 34:62] = near / 16 * queries[head, :, :32], same * about
        columns = torch.randperm(n - SINKS, generator=random)[:COLUMNS] + SINKS if column else torch.empty(0).long()
        keys[head, :SINKS], keys[head, columns] = 0, 0
        keys[head, :SINKS, 32], keys[head, columns, 33] = sink, column
    queries = queries[:, None] * WIDTH**0.5 + 0.1 * torch.randn(len(kinds), GROUP, n, WIDTH, generator=random)
    keys += 0.1 * torch.randn(keys.shape, generator=random)
    granted = {
        "queries": queries.bfloat16(),
        "keys": keys.bfloat16(),
        "values": torch.randn(keys.shape, generator=random).bfloat16(),
        "query_positions": place,
        "rope": None,
        "calibration": {},
        "marks": (),
    }
    heads = tuple(range(len(kinds)))
    return View(0, heads, "prefill", n, Scoring(WIDTH**-0.5), 0, place.expand(len(kinds), -1), granted)


def held_mass(view: View, where: Where) -> float:
    """Share of attention that the pattern holds, mean over heads and sampled rows."""
    n, found = view.count, []
    for start in torch.linspace(n // SAMPLED, n - ROWS, SAMPLED).int().tolist():
        rows = slice(start, start + ROWS)
        scores = torch.einsum("hgtd,hnd->hgtn", view.queries[:, :, rows].float(), view.keys.float()) * view.scale
        later = torch.arange(n) > torch.arange(start, start + ROWS)[:, None]
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        found.append(float((weights * where.rows(start, start + ROWS, n, n)[:, None]).sum(-1).mean()))
    return statistics.mean(found)


@dataclass(frozen=True)
class Choice:
    """What one KV head reads under a method: the sentence, what it holds and computes, and one reading's seconds."""

    recipe: str
    mass: float
    density: float
    seconds: float


def read(view: View, recipe: str) -> None:
    """Index and attention of one layer."""
    pattern = Recipe.parse(recipe).prefill
    attend(view.queries, view.keys, view.values, pattern.where(view) if pattern else Causal(), view.scoring)


def timed(view: View, recipe: str, mass: float, density: float) -> Choice:
    """A choice, read once."""
    start = time.perf_counter()
    read(view, recipe)
    return Choice(recipe, mass, density, time.perf_counter() - start)


def choose_setting(name: str, view: View, mass: float) -> Choice:
    """The sparsest setting that holds the mass of a view of one head, else the fullest."""
    for sentence in settings(name, view.count):
        where = Recipe.parse(sentence).prefill.where(view)
        held = held_mass(view, where)
        if held >= mass:
            break
    return timed(view, sentence, held, where.density(view.count, view.count))


def choices(views: Sequence[View], names: Sequence[str], mass: float) -> dict[str, list[list[Choice]]]:
    """By method, then by layer and KV head; `BY_HEAD`: of those that hold a head's mass, dense too, the quickest."""
    heads = [[view.subset((h,)) for h in range(len(view.heads))] for view in views]
    found = {name: [[choose_setting(name, head, mass) for head in layer] for layer in heads] for name in names}
    dense = [[timed(head, "", 1.0, 1.0) for head in layer] for layer in heads]
    found[BY_HEAD] = [
        [min((one for one in own if one.mass >= mass), key=attrgetter("seconds")) for own in zip(*rows, strict=True)]
        for rows in zip(dense, *found.values(), strict=True)
    ]
    return found


def interleaved(arms: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of every arm, the arms taking turns; their kernels are warm from choosing settings."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def on_planted(view: View, names: Sequence[str], mass: float, repetitions: int) -> dict[str, dict]:
    """One layer's attention of planted tokens; seconds of the index alone as well."""
    chosen = choices([view], names, mass)

    def groups(name: str) -> list[tuple[View, str]]:
        heads: dict[str, list[int]] = {}
        for head, choice in enumerate(chosen[name][0]):
            heads.setdefault(choice.recipe, []).append(head)
        return [(view.subset(tuple(own)), recipe) for recipe, own in heads.items()]

    parts = {"dense": [(view, "")], **{name: groups(name) for name in chosen}}
    seconds = interleaved({k: lambda g=g: [read(*one) for one in g] for k, g in parts.items()}, repetitions)
    patterns = {name: [(part, Recipe.parse(recipe).prefill) for part, recipe in parts[name]] for name in chosen}
    index = interleaved({k: lambda g=g: [p.where(v) for v, p in g if p] for k, g in patterns.items()}, repetitions)
    return together(chosen, mass, seconds, index)


@dataclass(frozen=True, eq=False)
class Layers(Observer):
    """Keeps the view of every layer."""

    needs = frozenset({"keys", "values", "queries", "rope", "calibration", "marks"})
    views: list[View] = field(default_factory=list)

    def look(self, view: View) -> None:
        self.views.append(view)


def on_model(model: PreTrainedModel, ids: torch.Tensor, names: Sequence[str], mass: float, repetitions: int) -> dict:
    """The whole prompt of the model, in one pass."""
    layers = Layers()
    observe(model, layers, [ids])
    chosen = choices(layers.views, names, mass)
    geometry = attach(model).geometry
    plans = {"dense": Plan.uniform(geometry, "")}
    for name, rows in chosen.items():
        plans[name] = Plan(geometry, tuple(tuple(Recipe.parse(one.recipe) for one in row) for row in rows))

    def run(plan: Plan) -> object:
        return prefill(model, headwise.Cache(model, plan), ids, None)

    seconds = interleaved({name: lambda p=plan: run(p) for name, plan in plans.items()}, repetitions)
    return together(chosen, mass, seconds, {})


def together(
    chosen: dict[str, list[list[Choice]]], mass: float, seconds: dict[str, float], index: dict[str, float]
) -> dict[str, dict]:
    """One row per method, and one for dense attention."""
    rows: dict[str, dict] = {"dense": {"mass": 1.0, "density": 1.0, "short": 0, "seconds": seconds["dense"]}}
    for name, layers in chosen.items():
        heads = [one for layer in layers for one in layer]
        rows[name] = {
            "recipes": [[one.recipe for one in layer] for layer in layers],
            "mass": statistics.mean(one.mass for one in heads),
            "density": statistics.mean(one.density for one in heads),
            "short": sum(one.mass < mass for one in heads),
            "heads": len(heads),
            "seconds": seconds[name],
        }
        if name in index:
            rows[name]["index_seconds"] = index[name]
    return rows


def break_even(by_length: dict[int, dict[str, dict]], name: str) -> str:
    """The length from which the method is faster than dense attention, between the measured ones on a log scale."""
    gain = {n: math.log(rows["dense"]["seconds"] / rows[name]["seconds"]) for n, rows in sorted(by_length.items())}
    lengths = list(gain)
    if gain[lengths[-1]] < 0:
        return f"above {lengths[-1]}"
    slower = [n for n in lengths if gain[n] < 0]
    if not slower:
        return f"below {lengths[0]}"
    low = slower[-1]
    high = lengths[lengths.index(low) + 1]
    part = gain[low] / (gain[low] - gain[high])
    return str(round(math.exp(math.log(low) + part * (math.log(high) - math.log(low)))))


def show(what: str, by_length: dict[int, dict[str, dict]]) -> None:
    """A table per length, and the break-even lengths."""
    for n, rows in by_length.items():
        print(f"\n{what}, {n} tokens\n\n| method | mass | density | index s | seconds | x dense |\n|{' --- |' * 6}")
        for name, row in rows.items():
            index = f"{row['index_seconds']:.3f}" if "index_seconds" in row else ""
            short = f" (not reached by {row['short']} of {row['heads']} heads)" if row["short"] else ""
            faster = rows["dense"]["seconds"] / row["seconds"]
            print(
                f"| {name} | {row['mass']:.3f}{short} | {row['density']:.3f} | {index} | {row['seconds']:.3f} | "
                f"{faster:.2f} |"
            )
    names = [name for name in next(iter(by_length.values())) if name != "dense"]
    print(f"\n{what}: break-even with dense attention, tokens")
    for name in names:
        print(f"  {name:16} {break_even(by_length, name)}")


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--methods", nargs="+", default=sorted(methods("prefill")))
    parser.add_argument("--on", nargs="+", choices=["planted", "embedded"], default=["planted", "embedded"])
    parser.add_argument("--each", type=int, default=2, help="planted KV heads of each kind; 1 halves the time")
    parser.add_argument("--mass", type=float, default=0.95)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    found: dict[str, dict[int, dict[str, dict]]] = {}
    if "planted" in args.on:
        found["planted"] = {
            n: on_planted(planted(n, args.each), args.methods, args.mass, args.repetitions) for n in args.lengths
        }
    if "embedded" in args.on:
        model = models.load("embedded")
        most = model.config.max_position_embeddings
        if left := [n for n in args.lengths if n > most]:
            print(f"embedded: {left} are past its {most} positions and are left out")
        ids = encode(AutoTokenizer.from_pretrained(embedded_model()), novel(), start=True)
        lengths = [n for n in args.lengths if n <= most]
        found["embedded"] = {n: on_model(model, ids[:, :n], args.methods, args.mass, args.repetitions) for n in lengths}
    for what, by_length in found.items():
        if by_length:
            show(what, by_length)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**found, "machine": machine(), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
