"""What copying and recalling lose without the heads that the lens names, beside as many others of the same layers.

    python benchmarks/lens_ablation.py smollm2 --out docs/data/lens/ablation.json

Heads are found on random tokens and on facts of the tuning split, and left out on others. Copying: the share of the
second half of random tokens, read twice, that greedy decoding would give. Recalling: the share of questions about
planted facts whose answers are said right as a whole. Intervals are 95 %, by bootstrap over texts; of random draws,
over draws and texts.
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
from headwise.bench.judging.intervals import Interval, of_scores
from headwise.bench.provenance import machine
from headwise.calibrate.subject import ModelSubject
from headwise.cli.figures import Figures
from headwise.cli.given import place_of
from headwise.cli.progress import Watcher
from headwise.files import write_text
from headwise.findings import Finding, as_data, part
from headwise.lens import Head, Scene, Text, ablated, measured
from headwise.observe import LayerAttention, Recall
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet
from headwise.tasks.needle import NiahMultiquery

SHARE = 0.05  # of the model's heads that are left out
HALF = 128  # random tokens, read twice
LENGTH, FACTS = 512, 8  # tokens of a document, and what is planted in it
SETS, ABOVE = 8, 0.1  # pairs of disjoint sets of documents whose heads are compared; a head retrieves from here on
RESAMPLES = 2000

Shares = tuple[list[float], list[float]]  # by random text, of tokens copied; by document, of answers that are right


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
    """By document, the share of questions whose answers are foretold to the last token."""
    shares = []
    for document in documents:
        ids, places = document.with_answers()
        right = subject.logits(ids, places, LayerAttention.full).argmax(-1) == ids[0, places + 1]
        answers = right.split([answer.shape[1] for _, answer in document.asked])
        shares.append(sum(float(one.all()) for one in answers) / len(answers))
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


def interval(draws: Sequence[Sequence[float]], times: int = RESAMPLES) -> tuple[float, float, float]:
    """Mean, and 95 % interval by bootstrap over draws and over what each is of."""
    random, means = Random(0), []
    for _ in range(times):
        picked = random.choices(draws, k=len(draws))
        texts = random.choices(range(len(draws[0])), k=len(draws[0]))
        means.append(sum(one[i] for one in picked for i in texts) / (len(picked) * len(texts)))
    means.sort()
    mean = sum(map(sum, draws)) / (len(draws) * len(draws[0]))
    return mean, means[int(0.025 * times)], means[int(0.975 * times)]


def share(of: torch.Tensor, whole: torch.Tensor) -> Interval:
    """What `of` is of `whole`, both [documents], with its 95 % interval by bootstrap over documents; their questions
    are counted."""
    picked = torch.randint(len(of), (RESAMPLES, len(of)), generator=torch.Generator().manual_seed(0))
    found = of[picked].sum(1) / whole[picked].sum(1)
    low, high = (float(found.quantile(end)) for end in (0.025, 0.975))
    return Interval(float(of.sum() / whole.sum()), low, high, len(of) * FACTS, "bootstrap 95 %")


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--texts", type=int, default=16, help="random texts, and as many documents")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    place = place_of(given.model)
    subject, tokenizer = ModelSubject(load_model(place)), load_tokenizer(place)
    documents, tuned = planted(tokenizer, "test", given.texts), planted(tokenizer, "tune", 4 * SETS)
    by_layer = [layer.query_heads for layer in subject.geometry.layers]

    def without(heads: Sequence[Head]) -> Shares:
        with ablated(subject.model, heads):
            return copied(subject, range(given.texts)), recalled(subject, documents)

    with Watcher() as watch:
        scores = measured(scene_of(subject, tuned[:2]), ["induction", "retrieval"], watch).figures
        found = {name: best(one) for name, one in scores.items()}
        whole, by = without([]), {}
        for name, heads in found.items():
            by[name] = left_out(without, heads, [others(heads, by_layer, Random(i)) for i in range(given.draws)], watch)
        sets = [retrieving(subject, tuned[at : at + 2], watch) for at in range(0, len(tuned), 2)]
    figures = told_of(given.model or "embedded", table(whole, found, by))
    if sum(whole[1]):  # a model that answers nothing has no heads that could be missed
        right, without_them = (torch.tensor(one) for one in (whole[1], by["retrieval"][0][1]))
        other = torch.tensor([draw[1] for draw in by["retrieval"][1:]]).mean(0)
        figures.findings.extend(as_data([retrieval_heads(figures, right, without_them, other, sets)]))
    print(figures.table())
    if given.out is not None:
        write_text(given.out, figures.model_dump_json(indent=1) + "\n")


def told_of(model: str, rows: list[list[str]]) -> Figures:
    """The table with what it was made by."""
    told = machine()
    return Figures(
        source="a run of its own", model=model, date=date.today().isoformat(),
        machine=f"{told['processor']}, {told['cores']} cores",
        command=" ".join([f"python benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        columns=["left out", "heads", "copied, % of tokens", "recalled, % of answers"],
        rows=rows,
    )  # fmt: skip


def scene_of(subject: ModelSubject, documents: Sequence[Recall]) -> Scene:
    """The model with documents to recall from."""
    ids = documents[0].ids
    return Scene(subject, Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool)), list(documents))


def retrieving(subject: ModelSubject, documents: Sequence[Recall], watch: Watcher) -> torch.Tensor:
    """How far each head [heads] retrieves from these documents."""
    scores = measured(scene_of(subject, documents), ["retrieval"], watch).figures["retrieval"]
    return scores[~scores.isnan()]


def left_out(
    without: Callable[[Sequence[Head]], Shares], heads: list[Head], drawn: list[list[Head]], watch: Watcher
) -> list[Shares]:
    """Both shares without these heads and, for each draw, without others."""
    found = []
    for number, some in enumerate([heads, *drawn]):
        watch("leaving heads out", number, 1 + len(drawn))
        found.append(without(some))
    return found


def table(whole: Shares, found: dict[str, list[Head]], by: dict[str, list[Shares]]) -> list[list[str]]:
    """A row for the whole model, and by lens one without its heads and one for all random draws."""
    rows = [row("nothing", 0, [whole])]
    for name, heads in found.items():
        own, *drawn = by[name]
        rows.append(row(f"the {len(heads)} heads of most {name}", len(heads), [own]))
        rows.append(row(f"others of the same layers, {len(drawn)} draws", len(heads), drawn))
    return rows


def retrieval_heads(
    figures: Figures, whole: torch.Tensor, without: torch.Tensor, other: torch.Tensor, sets: list[torch.Tensor]
) -> Finding:
    """Row 123. whole, without, other: the share of right answers by document with all heads, without those of most
    retrieval, and without others. sets: retrieval by heads, of two sets of documents after each other."""
    top = [set(one.topk(max(1, round(SHARE * len(one)))).indices.tolist()) for one in sets]
    overlaps = [len(one & two) / len(one) for one, two in zip(top[::2], top[1::2], strict=True)]
    return Finding(
        row=123,
        says="few heads retrieve, the same ones on all texts, and without them facts are not recalled any more",
        host=f"{figures.model}, {len(whole)} documents of {LENGTH} tokens with {FACTS} facts each",
        command=str(figures.command), machine=str(figures.machine), date=str(figures.date),
        parts=(
            part(f"share of heads whose retrieval is above {ABOVE}",
                 of_scores([float((one > ABOVE).float().mean()) for one in sets]), below=0.1),
            part("share of right answers that are left without the heads of most retrieval", share(without, whole),
                 below=0.2),
            part("share of right answers that are left without others of the same layers", share(other, whole),
                 above=0.9),
            part(f"share of the best {SHARE:.0%} of heads that are the best on other texts too", of_scores(overlaps),
                 above=0.8),
            part("what leaving out the heads of most retrieval costs more than leaving out others, share of right "
                 "answers", share(other - without, whole), control="others of the same layers", above=0.7),
        ),
        leaves_out="documents longer than that, and a model that is trained for it",
    )  # fmt: skip


def row(name: str, heads: int, draws: Sequence[Shares]) -> list[str]:
    """What was left out, and both shares with their intervals, in per cent."""
    cells = []
    for kind in (0, 1):
        mean, low, high = (100 * x for x in interval([draw[kind] for draw in draws]))
        cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
    return [name, str(heads), *cells]


if __name__ == "__main__":
    main()
