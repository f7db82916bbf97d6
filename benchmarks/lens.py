"""What looking at all heads of a model costs: a plain forward of a text beside one in which every quick lens of
attention looks at every head, the two taking turns.

    python benchmarks/lens.py smollm2 --tokens 8192 --runs 3 --json out/lens.json

Each row is a median over the runs, with its quickest and slowest, in seconds of the processor, which others that
work beside it change little; `ratio` is the second's over the first's. With
`--parts`, each lens alone as well, which tells what costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from headwise.assets import novel
from headwise.bench.job import encode
from headwise.bench.provenance import machine, versions
from headwise.calibrate.subject import ModelSubject
from headwise.cli.given import place_of
from headwise.lens import Text, looked_at
from headwise.lens.measured import text_lenses
from headwise.lenses import LENSES, AttentionLens
from headwise.observe import LayerAttention
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--parts", action="store_true", help="each lens alone as well")
    parser.add_argument("--json", type=Path)
    return parser


def arms(subject: ModelSubject, text: Text, parts: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    last = torch.tensor([text.tokens - 1])

    def plain() -> object:
        with torch.no_grad():
            return subject.hidden(text.ids, last, LayerAttention.full)

    def looking(names: Sequence[str]) -> Callable[[], object]:
        lenses = {name: one for name, one in LENSES.all().items() if isinstance(one, AttentionLens) and name in names}
        return lambda: looked_at(subject, text, lambda look: {name: one.of(look) for name, one in lenses.items()})

    found: dict[str, Callable[[], object]] = {"plain": plain, "all heads": looking(text_lenses())}
    return found | ({name: looking([name]) for name in text_lenses()} if parts else {})


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(given.threads)
    place = place_of(given.model)
    subject = ModelSubject(load_model(place, given.dtype))
    ids = encode(load_tokenizer(place), novel(), start=True)[:, : given.tokens]
    text = Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool))
    timed = arms(subject, text, given.parts)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(given.runs):
        for name, one in timed.items():
            began = time.process_time()
            one()
            seconds[name].append(time.process_time() - began)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    rows = {name: {"median": statistics.median(x), "least": min(x), "most": max(x)} for name, x in seconds.items()}
    told: dict[str, Any] = {"model": given.model or "embedded", "tokens": text.tokens, "threads": given.threads,
                            "machine": machine(), "versions": versions(), "rows": rows,
                            "ratio": rows["all heads"]["median"] / rows["plain"]["median"]}  # fmt: skip
    print(f"all heads over plain: {told['ratio']:.2f}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
