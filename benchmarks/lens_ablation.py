"""What copying and recalling lose without the heads that the lens names, beside as many others of the same layers.

    python benchmarks/lens_ablation.py smollm2 --out docs/data/lens/ablation.json

Heads are found on random tokens and on facts of the tuning split, and left out on others. Copying: the share of the
second half of random tokens, read twice, that greedy decoding would give. Recalling: the share of answer tokens about
planted facts. Intervals are 95 %, by bootstrap over texts; of random draws, over draws and texts.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from random import Random

import torch

from headwise.bench.job import recalls
from headwise.bench.provenance import machine
from headwise.calibrate.subject import ModelSubject
from headwise.cli.figures import Figures
from headwise.cli.given import place_of
from headwise.cli.progress import Watcher
from headwise.files import write_text
from headwise.lens import Head, Scene, Text, ablated, measured
from headwise.observe import LayerAttention, Recall
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet
from headwise.tasks.needle import NiahMultiquery

SHARE = 0.05  # of the model's heads that are left out
HALF = 128  # random tokens, read twice
LENGTH, FACTS = 512, 8  # tokens of a document, and what is planted in it


def planted(tokenizer: object, split: str, count: int) -> list[Recall]:
    """Documents of a split with planted facts, and a question about each."""
    return recalls(tokenizer, NiahMultiquery(keys=FACTS, queries=FACTS, split=split), LENGTH, count, 0)


@torch.no_grad()
def copied(subject: ModelSubject, seeds: Sequence[int]) -> list[float]:
    """By seed, the share of a second half that is foretold."""
    shares = []
    for seed in seeds:
        half = torch.randperm(subject.vocabulary, generator=torch.Generator().manual_seed(1000 + seed))[:HALF]
        places = torch.arange(HALF, 2 * HALF - 1)  # its first token nothing foretells
        said = subject.logits(half.repeat(2)[None], places, LayerAttention.full).argmax(-1)
        shares.append(float((said == half[1:]).float().mean()))
    return shares


@torch.no_grad()
def recalled(subject: ModelSubject, documents: Sequence[Recall]) -> list[float]:
    """By document, the share of answer tokens that are foretold."""
    shares = []
    for document in documents:
        ids, places = document.with_answers()
        said = subject.logits(ids, places, LayerAttention.full).argmax(-1)
        shares.append(float((said == ids[0, places + 1]).float().mean()))
    return shares


def best(figures: torch.Tensor) -> list[Head]:
    """The heads of the highest figures [layers, heads], SHARE of all, one at least."""
    order = figures.nan_to_num(-torch.inf).flatten().argsort(descending=True)
    count = max(1, round(SHARE * int((~figures.isnan()).sum())))
    return [(int(place) // figures.shape[1], int(place) % figures.shape[1]) for place in order[:count]]


def others(heads: Sequence[Head], by_layer: Sequence[int], random: Random) -> list[Head]:
    """As many heads of the same layers, none of them among `heads` where a layer has enough."""
    drawn = []
    for layer, count in Counter(layer for layer, _ in heads).items():
        free = [head for head in range(by_layer[layer]) if (layer, head) not in heads]
        drawn += [(layer, head) for head in random.sample(free, min(count, len(free)))]
    return drawn


def interval(draws: Sequence[Sequence[float]], times: int = 2000) -> tuple[float, float, float]:
    """Mean, and 95 % interval by bootstrap over draws and over what each is of."""
    random, means = Random(0), []
    for _ in range(times):
        picked = random.choices(draws, k=len(draws))
        texts = random.choices(range(len(draws[0])), k=len(draws[0]))
        means.append(sum(one[i] for one in picked for i in texts) / (len(picked) * len(texts)))
    means.sort()
    mean = sum(map(sum, draws)) / (len(draws) * len(draws[0]))
    return mean, means[int(0.025 * times)], means[int(0.975 * times)]


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--texts", type=int, default=16, help="random texts, and half as many documents")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    """Measure and write the table."""
    given = arguments().parse_args()
    quiet()
    place = place_of(given.model)
    subject, tokenizer = ModelSubject(load_model(place)), load_tokenizer(place)
    documents = planted(tokenizer, "test", given.texts // 2)
    ids = documents[0].ids
    scene = Scene(subject, Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool)), planted(tokenizer, "tune", 2))
    by_layer = [layer.query_heads for layer in subject.geometry.layers]

    def without(heads: Sequence[Head]) -> tuple[list[float], list[float]]:
        with ablated(subject.model, heads):
            return copied(subject, range(given.texts)), recalled(subject, documents)

    with Watcher() as watch:
        scores = measured(scene, ["induction", "retrieval"], watch).figures
        found = {name: best(one) for name, one in scores.items()}
        rows = table(without, found, by_layer, given.draws, watch)
    told = machine()
    figures = Figures(
        source="a run of its own", model=given.model or "embedded", date=date.today().isoformat(),
        machine=f"{told['processor']}, {told['cores']} cores",
        command=" ".join(["python benchmarks/lens_ablation.py", *sys.argv[1:]]),
        columns=["left out", "heads", "copied, % of tokens", "recalled, % of answer tokens"], rows=rows,
    )  # fmt: skip
    print(figures.table())
    if given.out is not None:
        write_text(given.out, figures.model_dump_json(indent=1) + "\n")


def table(
    without: Callable[[Sequence[Head]], tuple[list[float], list[float]]],
    found: dict[str, list[Head]],
    by_layer: Sequence[int],
    draws: int,
    watch: Watcher,
) -> list[list[str]]:
    """A row for the whole model, and by lens one without its heads and one for all random draws."""
    rows, total, done = [row("nothing", 0, [without([])])], len(found) * (1 + draws), 0
    for name, heads in found.items():
        watch("leaving heads out", done, total)
        rows.append(row(f"the {len(heads)} heads of most {name}", len(heads), [without(heads)]))
        drawn = []
        for seed in range(draws):
            done += 1
            watch("leaving heads out", done, total)
            drawn.append(without(others(heads, by_layer, Random(seed))))
        rows.append(row(f"others of the same layers, {draws} draws", len(others(heads, by_layer, Random(0))), drawn))
        done += 1
        watch.finished(" | ".join(rows[-2]))
        watch.finished(" | ".join(rows[-1]))
    return rows


def row(name: str, heads: int, draws: Sequence[tuple[list[float], list[float]]]) -> list[str]:
    """What was left out, and both shares with their intervals, in per cent."""
    cells = []
    for kind in (0, 1):
        mean, low, high = (100 * x for x in interval([draw[kind] for draw in draws]))
        cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
    return [name, str(heads), *cells]


if __name__ == "__main__":
    main()
