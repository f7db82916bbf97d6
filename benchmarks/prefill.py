"""Sparse prefill beside our own dense kernel, index building included, where a pattern holds 95 % of the attention.

    python benchmarks/prefill.py --lengths 8192 32768 131072 --json out/prefill.json
    python benchmarks/prefill.py --on planted --lengths 2048 4096 --methods vertical_slash flex_prefill --repetitions 1

Each method is tried from its sparsest setting to its fullest until the share of attention its pattern holds, over rows
sampled evenly, reaches `--mass`; that setting is timed against dense attention, the arms taking turns. A method that
never gets there is timed at its fullest setting, and its row says so.

planted: one layer of a 1B model's shape (8 KV heads, 4 query heads each, width 64, bfloat16). Two KV heads of each kind
of `KINDS`; their attention goes, in about the shares given there, to 4 sinks, to a window (about 128 tokens wide, made
of cosines of the distance as rotary embedding makes it, with the faint diagonals that come with it), to 64 columns
drawn at random, and to segments of 128 tokens on the topic, of 28, that the query's segment asks for; else to noise.

embedded: the whole embedded model reads the novel; settings are those that hold the mass on average over three layers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import models
import torch
from transformers import AutoTokenizer, PreTrainedModel

import headwise
from headwise.assets import embedded_model, novel
from headwise.attention import Causal, View, Where, attend
from headwise.bench.job import encode
from headwise.bench.provenance import machine, versions
from headwise.calibrate.look import Observer, observe
from headwise.engine.drive import prefill
from headwise.recipe import Recipe
from headwise.registry import methods

WIDTH, GROUP, SINKS, SPREAD, COLUMNS, SEGMENT, TOPICS = 64, 4, 4, 128, 64, 128, 28
KINDS = {  # shares of attention: sinks, window, columns, topic; the rest falls on all keys alike
    "local": (0.30, 0.67, 0.00, 0.00),
    "columns": (0.20, 0.25, 0.52, 0.00),
    "topic": (0.20, 0.20, 0.00, 0.57),
    "mixed": (0.20, 0.30, 0.25, 0.22),
}
SAMPLED, ROWS = 16, 8  # stretches of rows whose attention is looked at, and rows of each


def settings(name: str, n: int) -> list[str]:
    """Sentences of one method for n tokens, the sparsest first; the default alone where no knob trades mass."""
    shares = (0.02, 0.05, 0.1, 0.2, 0.4)
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


def planted(n: int) -> View:
    """Queries, keys and values of n tokens as described above, as a prefill method sees them."""
    random = torch.Generator().manual_seed(0)
    kinds = [kind for kind in KINDS.values() for _ in range(2)]
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
    }
    heads = tuple(range(len(kinds)))
    return View(0, heads, "prefill", n, WIDTH**-0.5, 0, place.expand(len(kinds), -1), granted)


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


def choose_setting(name: str, views: Sequence[View], mass: float) -> dict[str, object]:
    """The sparsest setting that holds the mass on average over the views, else the fullest."""
    for sentence in settings(name, views[0].count):
        pattern = Recipe.parse(sentence).prefill
        drawn = [pattern.where(view) for view in views]
        held = statistics.mean(map(held_mass, views, drawn))
        density = statistics.mean(
            where.density(view.count, view.count) for view, where in zip(views, drawn, strict=True)
        )
        if held >= mass:
            break
    return {"recipe": sentence, "mass": held, "density": density, "reached": held >= mass}


def interleaved(arms: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of every arm, the arms taking turns after a warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repetitions + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def on_planted(n: int, names: Sequence[str], mass: float, repetitions: int) -> dict[str, dict]:
    """One layer's attention of n planted tokens; seconds of the index alone as well."""
    view = planted(n)

    def read(where: Where) -> object:
        return attend(view.queries, view.keys, view.values, where, scale=view.scale)

    rows: dict[str, dict] = {name: choose_setting(name, [view], mass) for name in names}
    patterns = {name: Recipe.parse(str(row["recipe"])).prefill for name, row in rows.items()}
    arms: dict[str, Callable[[], object]] = {"dense": lambda: read(Causal())}
    arms |= {name: lambda pattern=pattern: read(pattern.where(view)) for name, pattern in patterns.items()}
    seconds = interleaved(arms, repetitions)
    index = interleaved({k: lambda p=p: p.where(view) for k, p in patterns.items()}, repetitions)
    return together(rows, seconds, index)


@dataclass(frozen=True, eq=False)
class Some(Observer):
    """Keeps the views of a few layers."""

    needs = frozenset({"keys", "values", "queries", "rope", "calibration"})
    layers: tuple[int, ...] = ()
    views: list[View] = field(default_factory=list)

    def look(self, view: View) -> None:
        if view.layer in self.layers:
            self.views.append(view)


def on_model(model: PreTrainedModel, ids: torch.Tensor, names: Sequence[str], mass: float, repetitions: int) -> dict:
    """The whole prompt of the model, in one pass."""
    depth = model.config.num_hidden_layers
    some = Some(layers=(0, depth // 2, depth - 1))
    observe(model, some, [ids])
    rows = {name: choose_setting(name, some.views, mass) for name in names}
    sentences = {"dense": "", **{name: str(row["recipe"]) for name, row in rows.items()}}

    def read(sentence: str) -> object:
        return prefill(model, headwise.Cache(model, sentence), ids, None)

    return together(rows, interleaved({k: lambda s=s: read(s) for k, s in sentences.items()}, repetitions), {})


def together(rows: dict[str, dict], seconds: dict[str, float], index: dict[str, float]) -> dict[str, dict]:
    """One row per method, and one for dense attention."""
    told = {name: {**row, "seconds": seconds[name]} for name, row in rows.items()}
    for name, taken in index.items():
        told[name]["index_seconds"] = taken
    return {"dense": {"recipe": "", "mass": 1.0, "density": 1.0, "reached": True, "seconds": seconds["dense"]}, **told}


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
        print(f"\n{what}, {n} tokens\n\n| recipe | mass | density | index s | seconds | x dense |\n|{' --- |' * 6}")
        for name, row in rows.items():
            index = f"{row['index_seconds']:.3f}" if "index_seconds" in row else ""
            mass = f"{row['mass']:.3f}" + ("" if row["reached"] else " (not reached)")
            faster = rows["dense"]["seconds"] / row["seconds"]
            print(
                f"| {row['recipe'] or name} | {mass} | {row['density']:.3f} | {index} | {row['seconds']:.3f} | "
                f"{faster:.2f} |"
            )
    names = [name for name in next(iter(by_length.values())) if name != "dense"]
    print(f"\n{what}: break-even with dense attention, tokens")
    for name in names:
        print(f"  {name:16} {break_even(by_length, name)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--methods", nargs="+", default=sorted(methods("prefill")))
    parser.add_argument("--on", nargs="+", choices=["planted", "embedded"], default=["planted", "embedded"])
    parser.add_argument("--mass", type=float, default=0.95)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[int, dict[str, dict]]] = {}
    if "planted" in args.on:
        found["planted"] = {n: on_planted(n, args.methods, args.mass, args.repetitions) for n in args.lengths}
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
