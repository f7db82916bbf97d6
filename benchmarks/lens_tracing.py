"""Which heads carry what followed a run of random tokens to the place where that run is read again, beside controls.

    python benchmarks/lens_tracing.py embedded --out docs/data/lens/tracing.json --picture docs/lens_tracing.png

Two prompts of the same tokens have different answers (`headwise.lens.repeats`). A head is found where what it said of
the one, put into the other alone, brings back more than LEAST of the answer, with its 95 % interval over prompts, in
one of both kinds of prompts. All found heads together stand beside as many random others of the same layers, and
beside all others of the model.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch

from headwise.bench.provenance import machine
from headwise.calibrate.subject import ModelSubject
from headwise.cli.figures import Figures
from headwise.cli.given import place_of
from headwise.cli.progress import Watcher
from headwise.experiments import interval
from headwise.files import write_bytes, write_text
from headwise.lens import Contrast, Head, Patch, brought_back, every_head, repeats, traced
from headwise.report.pictures import as_png
from headwise.report.tracing_picture import picture
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.load import load_model, quiet

LEAST = 0.05  # of the answer that a head brings back alone


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompts", type=int, default=16, help="pairs of prompts, 3 to 20")
    parser.add_argument("--run", type=int, default=10, help="tokens of a run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    return parser


def found_heads(heads: list[Head], effects: dict[str, torch.Tensor]) -> list[Head]:
    """The heads whose effects [prompts, heads] are above LEAST in one of the kinds."""
    lows = {kind: [interval(one.tolist())["low"] for one in all_.T] for kind, all_ in effects.items()}
    return [head for place, head in enumerate(heads) if any(low[place] > LEAST for low in lows.values())]


def others(found: list[Head], heads: list[Head], random: Random) -> list[Head]:
    """As many heads of the same layers that were not found, as far as there are."""
    drawn: list[Head] = []
    for layer in sorted({layer for layer, _ in found}):
        free = [head for head in heads if head[0] == layer and head not in found]
        drawn += random.sample(free, min(len(free), sum(head[0] == layer for head in found)))
    return drawn


def by_place(model: PreTrainedModel, one: Contrast, found: list[Head]) -> list[list[float]]:
    """What each found head brings back at each place alone."""
    tokens = one.clean.shape[1]
    patches = [Patch(head, (place,)) for head in found for place in range(tokens)]
    return [[round(x, 4) for x in row] for row in traced(model, one, patches).view(len(found), tokens).tolist()]


def main() -> None:
    """Trace, and write the table, its JSON and the picture."""
    given = arguments().parse_args()
    quiet()
    model = load_model(place_of(given.model))
    subject, heads = ModelSubject(model), every_head(model)
    contrasts = [repeats(subject.vocabulary, seed, given.run) for seed in range(given.prompts)]
    with Watcher() as watch:
        effects = {}
        for kind in contrasts[0]:
            by_prompt = []
            for place, one in enumerate(contrasts):
                watch(f"tracing {kind}", place, len(contrasts))
                by_prompt.append(traced(model, one[kind], [Patch(head) for head in heads]))
            effects[kind] = torch.stack(by_prompt)
        found = found_heads(heads, effects)
        watch("tracing places")
        places = {kind: by_place(model, contrasts[0][kind], found) for kind in effects}
        rows: list[list[str | float | int]] = [[*row] for row in table(model, contrasts, found, heads)]
    counts = [layer.query_heads for layer in subject.geometry.layers]
    kinds = {
        kind: {"effects": grid(one.mean(0), heads, counts), "places": places[kind]} for kind, one in effects.items()
    }
    name = given.model or "embedded"
    result: dict[str, Any] = {"model": name, "found": found, "kinds": kinds}
    told = machine()
    figures = Figures(
        source="a run of its own", model=name, date=date.today().isoformat(),
        machine=f"{told['processor']}, {told['cores']} cores",
        command=" ".join(["python benchmarks/lens_tracing.py", *sys.argv[1:]]),
        columns=["patched together", "heads", "keys, % of the answer", "query, % of the answer"], rows=rows,
    )  # fmt: skip
    print(figures.table())
    print("found:", " ".join(f"{layer}.{head}" for layer, head in found))
    if given.out is not None:
        write_text(given.out, figures.model_dump_json(indent=1) + "\n")
    if given.picture is not None:
        write_bytes(given.picture, as_png(picture(result), dpi=100, source=json.dumps(result).encode()))


def grid(effects: torch.Tensor, heads: list[Head], counts: list[int]) -> list[list[float | None]]:
    """Effects by layer and head, nothing where a layer has none."""
    known = dict(zip(heads, effects.tolist(), strict=True))
    return [[round(known.get((layer, head), 0.0), 4) for head in range(count)] for layer, count in enumerate(counts)]


def table(
    model: PreTrainedModel, contrasts: list[dict[str, Contrast]], found: list[Head], heads: list[Head]
) -> list[list[str]]:
    """What is brought back together by the found heads, by random others of their layers, and by all others."""
    groups: dict[str, Any] = {
        "the heads found": lambda seed: found,
        "random others of the same layers": lambda seed: others(found, heads, Random(seed)),
        "all other heads of the model": lambda seed: [head for head in heads if head not in found],
    }
    rows = []
    for name, chosen in groups.items():
        cells = []
        for kind in contrasts[0]:
            one = interval([100 * brought_back(model, c[kind], chosen(seed)) for seed, c in enumerate(contrasts)])
            cells.append(f"{one['mean']:.1f} [{one['low']:.1f}, {one['high']:.1f}]")
        rows.append([name, str(len(chosen(0))), *cells])
    return rows


if __name__ == "__main__":
    main()
