"""How well scores by gradient rank heads as leaving each of them out does.

    python benchmarks/lens_attribution.py embedded --out docs/data/lens/attribution.json

Rank correlation (Spearman) over all heads of a model with what the score loses without each. "slopes": the gradient
alone; "attributed": as the lens `attribution` has it, the first layer's heads left out. Intervals are 95 % over texts.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

import torch

from headwise.assets import novel
from headwise.bench.job import encode
from headwise.bench.provenance import machine
from headwise.calibrate.subject import ModelSubject
from headwise.cli.figures import Figures
from headwise.cli.given import place_of
from headwise.cli.progress import Watcher
from headwise.experiments import interval
from headwise.files import write_text
from headwise.lens.attribution import attributed, left_out, score, slopes
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--texts", type=int, default=3, help="of each kind, 3 to 20")
    parser.add_argument("--tokens", type=int, default=128, help="of a text")
    parser.add_argument("--out", type=Path)
    return parser


def ranks(values: torch.Tensor) -> torch.Tensor:
    """The place of each value in their order."""
    return values.argsort().argsort().float()


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack((ranks(one), ranks(other))))[0, 1])


def texts(subject: ModelSubject, words: torch.Tensor, count: int, tokens: int) -> dict[str, list[torch.Tensor]]:
    """By kind, ids [1, tokens]: random tokens read twice, and pieces of a novel."""
    repeated = []
    for seed in range(count):
        half = torch.randperm(subject.vocabulary, generator=torch.Generator().manual_seed(seed))[: tokens // 2]
        repeated.append(half.repeat(2)[None])
    pieces = [words[:, 1000 * (i + 1) : 1000 * (i + 1) + tokens] for i in range(count)]
    return {"random tokens read twice": repeated, "a novel": pieces}


def main() -> None:
    """Measure, and write the table."""
    given = arguments().parse_args()
    quiet()
    place = place_of(given.model)
    subject = ModelSubject(load_model(place))
    words = encode(load_tokenizer(place), novel()[: 6000 * (given.texts + 1)], start=True)
    layers = subject.geometry.layers
    heads = [(i, j) for i in subject.geometry.attending for j in range(layers[i].query_heads)]
    rows: list[list[str | float | int]] = []
    with Watcher() as watch:
        for kind, some in texts(subject, words, given.texts, given.tokens).items():
            found: dict[str, list[float]] = {"slopes": [], "attributed": []}
            for number, ids in enumerate(some):
                places = torch.arange(given.tokens // 2, given.tokens - 1)
                with torch.no_grad():
                    whole = score(subject, ids, places)
                true = []
                for done, head in enumerate(heads):
                    watch(f"{kind}, text {number + 1}", done, len(heads))
                    true.append(left_out(subject, ids, places, head, whole))
                for name, of in (("slopes", slopes), ("attributed", attributed)):
                    own = of(subject, ids, places)
                    by_head = torch.stack([own[head] for head in heads])
                    found[name].append(alike(by_head, torch.tensor(true)))
            for name, values in found.items():
                one = interval(values)
                rows.append([kind, name, len(heads), f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"])
                watch.finished(" | ".join(map(str, rows[-1])))
    told = machine()
    figures = Figures(
        source="a run of its own", model=given.model or "embedded", date=date.today().isoformat(),
        machine=f"{told['processor']}, {told['cores']} cores",
        command=" ".join(["python benchmarks/lens_attribution.py", *sys.argv[1:]]),
        columns=["text", "by", "heads", "rank correlation with leaving out"], rows=rows,
    )  # fmt: skip
    print(figures.table())
    if given.out is not None:
        write_text(given.out, figures.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
