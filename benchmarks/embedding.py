"""A decoder as a retriever: what its layers and the way of pooling tell of which document answers a question.

    python benchmarks/embedding.py smollm2 --json docs/data/context/smollm2-embedding.json

Documents are stretches of a novel with a made-up fact each, questions ask for one of them; facts of training and of
testing are of other things. The model is frozen. Its vectors are compared as they are (SGPT's weighted mean, the mean,
the last token), and after poolings that are trained on the same pairs, for as many steps: a linear map of the last
layer, Multi-layers trainable pooling over all layers, and the same module over the last layer alone. With --state
FOLDER, what is finished is kept there, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from headwise.assets import embedded_model
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.provenance import machine
from headwise.cli.progress import Watcher
from headwise.context.layer_pooling import LayerPooling
from headwise.context.material import facts
from headwise.context.states import Pool, layer_vectors
from headwise.files import write_json
from headwise.findings import ENOUGH, Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet
from headwise.theory.fitting import adam

POOLS: tuple[Pool, ...] = ("weighted_mean", "mean", "last")
LAST = POOLS.index("last")
SEEDS, RATE, BATCH, TEMPERATURE = range(3), 3e-4, 32, 0.05
LATENTS = 4  # learned queries of the trainable poolings
Pairs = tuple[torch.Tensor, torch.Tensor]  # vectors of questions and of their documents [pools, n, layers, width]
Scores = dict[str, list[float]]  # by what is measured, one of each question


class Linear(nn.Module):
    """A linear map of one layer's vector, normed before and of length 1 after."""

    def __init__(self, layer: int, width: int) -> None:
        super().__init__()
        self.layer, self.norm, self.map = layer, nn.LayerNorm(width), nn.Linear(width, width, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return normalize(self.map(self.norm(vectors[:, self.layer])), dim=-1)


class LastAlone(LayerPooling):
    """Multi-layers pooling that is given the last layer alone."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return super().forward(vectors[:, -1:])


def trained_arms(layers: int, width: int) -> dict[str, Callable[[], nn.Module]]:
    """What is trained."""
    return {
        "last token, last layer, linear map": partial(Linear, layers - 1, width),
        "last token, middle layer, linear map": partial(Linear, layers // 2, width),
        "last token, trainable pooling of the last layer": partial(LastAlone, 1, width, LATENTS),
        "last token, trainable pooling of all layers": partial(LayerPooling, layers, width, LATENTS),
    }


def texts(count: int, split: str) -> tuple[list[str], list[str], list[str]]:
    """Questions, the document that answers each, and what is asked for, such as "key number"."""
    found: dict[str, tuple[str, str, str]] = {}
    seed = 0
    while len(found) < count:
        for one in facts(count, 1, seed, split):  # type: ignore[arg-type]
            asked = one.question.partition("\n")[0].removeprefix("Question: ")
            found.setdefault(asked, (asked, one.documents[0], one.proof))
        seed += 1
    questions, documents, proofs = map(list, zip(*list(found.values())[:count], strict=True))
    kinds = [proof.partition(" of ")[0].rpartition("the ")[2].lower().removeprefix("the ") for proof in proofs]
    return questions, documents, kinds


def vectors(model: Any, tokenizer: Any, told: list[str], watch: Watcher, what: str, kept: Path) -> torch.Tensor:
    """Of texts [pools, n, layers, width], in float32; kept in a file."""
    if not kept.exists():
        parts = []
        for first in range(0, len(told), 8):
            watch(f"reading {what}", first, len(told))
            parts.append(layer_vectors(model, tokenizer, told[first : first + 8], POOLS))
        torch.save(torch.cat(parts, dim=1), kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    found: torch.Tensor = torch.load(kept, weights_only=True)
    return found


def judged(questions: torch.Tensor, documents: torch.Tensor, kinds: list[str]) -> Scores:
    """By question, whether the nearest document answers it; by document, whether the nearest of the mean vectors of
    what is asked for, of the other half of the documents, is its own."""
    likely = normalize(questions, dim=-1) @ normalize(documents, dim=-1).T
    right = (likely.argmax(1) == torch.arange(len(likely))).float().tolist()
    half = torch.arange(len(documents)) % 2
    classed = []
    for i, kind in enumerate(kinds):
        known = sorted({one for j, one in enumerate(kinds) if half[j] != half[i]})
        means = torch.stack([
            documents[[j for j, own in enumerate(kinds) if own == one and half[j] != half[i]]].mean(0) for one in known
        ])  # fmt: skip
        classed.append(float(known[int((normalize(means, dim=-1) @ documents[i]).argmax())] == kind))
    return {"recall": right, "class": classed}


def learnt(make: Callable[[], nn.Module], train: Pairs, test: Pairs, kinds: list[str], steps: int, seed: int) -> Scores:
    """What a pooling of the last token's vectors comes to after training by contrast within batches."""
    torch.manual_seed(seed)
    module, chance = make(), torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        chosen = torch.randperm(train[0].shape[1], generator=chance)[:BATCH]
        asked, told = (module(one[LAST, chosen]) for one in train)
        return cross_entropy(asked @ told.T / TEMPERATURE, torch.arange(len(chosen)))

    adam(list(module.parameters()), loss, steps, RATE)
    with torch.no_grad():
        return judged(module(test[0][LAST]), module(test[1][LAST]), kinds)


def findings(found: dict[str, Scores], host: str, origin: dict[str, Any]) -> list[Finding]:
    """What they show of rows 83 and 227."""

    def more(what: str, one: str, other: str) -> Interval:
        return of_strata([[a - b for a, b in zip(found[one][what], found[other][what], strict=True)]])

    last, _, alone, all_layers = (name for name in found if "token," in name)
    pooled = Finding(
        row=83, host=host, **origin,
        says="Of a frozen model, trained pooling of all layers finds the document more often than of the last layer",
        parts=(
            part("recall@1", more("recall", all_layers, last), above=0.0, control="a linear map of the last layer"),
            part("recall@1", more("recall", all_layers, alone), above=0.0, control="the same module on the last layer"),
            part("documents classed, beside a linear map", more("class", all_layers, last), above=-0.01),
        ),
        leaves_out="bidirectional masks, training of the model itself, and a host whose middle layers tell more",
    )  # fmt: skip
    weighted = Finding(
        row=227, host=host, **origin,
        says="Of a model that is not trained for it, means of states that count later tokens more find the document "
        "more often than plain means",
        parts=tuple(
            part("recall@1", more("recall", "weighted_mean, as it is", f"{other}, as it is"), above=0.0, control=other)
            for other in ("mean", "last")
        ),
        leaves_out="training by contrast on biases alone",
    )  # fmt: skip
    return [pooled, weighted]


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("model")
    read.add_argument("--questions", type=int, default=128)
    read.add_argument("--trained", type=int, default=192)
    read.add_argument("--steps", type=int, default=200)
    read.add_argument("--state", type=Path)
    read.add_argument("--json", type=Path)
    return read


def measured(given: argparse.Namespace) -> dict[str, Scores]:
    """By arm, what was measured of each question, the mean over seeds."""
    tokenizer, model = load_pair(embedded_model() if given.model == "embedded" else given.model)
    folder = given.state or Path(mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    with Watcher() as watch:
        held, kinds = [], list[str]()
        for split, count in (("tune", given.trained), ("test", given.questions)):
            questions, documents, kinds = texts(count, split)
            told = {"questions": questions, "documents": documents}
            held.append(tuple(
                vectors(model, tokenizer, own, watch, f"{what}, {split}", folder / f"{split}-{count}-{what}.pt")
                for what, own in told.items()
            ))  # fmt: skip
        train, test = held
        _, _, layers, width = test[0].shape
        found = {
            f"{pool}, as it is": judged(test[0][i, :, -1], test[1][i, :, -1], kinds) for i, pool in enumerate(POOLS)
        }
        for name, make in trained_arms(layers, width).items():
            runs = []
            for seed in SEEDS:
                watch(f"training: {name}", seed, len(SEEDS))
                key = f"{given.trained}-{given.questions}-{given.steps}-{name}-{seed}"
                runs.append(
                    once(given.state, key, partial(learnt, make, train, test, kinds, given.steps, seed))  # type: ignore[arg-type]
                )
            found[name] = {
                what: [sum(own) / len(SEEDS) for own in zip(*(run[what] for run in runs), strict=True)]
                for what in ("recall", "class")
            }
    return found


def main() -> None:
    """Read, train, print and write."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    found, own = measured(given), machine()
    origin = {
        "command": f"python benchmarks/{Path(__file__).name} {given.model} --questions {given.questions} --trained "
        f"{given.trained} --steps {given.steps}",
        "machine": f"{own['processor']}, {own['cores']} cores",
        "date": date.today().isoformat(),
    }
    rows = []
    for name, scores in found.items():
        told = [of_strata([scores[what]]) if name in trained_arms(1, 8) else of_scores(scores[what]) for what in
                ("recall", "class")]  # fmt: skip
        rows.append([name, *(f"{100 * one.mean:.0f} [{100 * one.low:.0f}, {100 * one.high:.0f}]" for one in told)])
        print(*rows[-1], sep=" | ")
    host = f"{given.model}, frozen, {given.questions} questions of as many documents"
    judgement = as_data(findings(found, host, origin)) if given.questions >= ENOUGH else []
    if given.json is not None:
        columns = ["vector of a text", "finds its document, %", "documents classed right, %"]
        write_json(given.json, {"source": "a run of its own", **origin, "model": given.model, "columns": columns,
                                "rows": rows, "findings": judgement})  # fmt: skip


if __name__ == "__main__":
    main()
