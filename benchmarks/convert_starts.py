"""Where a conversion begins: a model with fewer KV heads, or as a latent, from each of several starts, alike distilled.

    python benchmarks/convert_starts.py embedded --state out/convert --json docs/data/convert/starts.json

Every side learns what its source says, from the same windows of the shipped novel's second book, from three seeds; then
its loss is asked on windows of the first book. Differences are of the means over seeds, paired by window, with the
bootstrap's 95 % interval. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional as F

from headwise.assets import embedded_model
from headwise.bench.judging.intervals import Interval, of_strata
from headwise.bench.provenance import machine
from headwise.conversions import conversion
from headwise.convert.distil import Distilling, distilled
from headwise.convert.texts import Book, divergence, losses
from headwise.findings import Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import read_decoder

TITLES = {"gqa": "mean pooling", "eco_mla": "singular vectors"}
SAYS = {
    233: "With one KV head in the place of all, the mean of the heads ends at a lower loss than other starts.",
    272: "At a fourth of the cache, singular vectors end at a lower loss and divergence than a random start.",
}
LEAVES = {
    233: "uptraining for 5 % of the original steps, and a model of a fourth of the KV heads within 2 % of the source",
    272: "the factors of the query matrix, ranks by energy, a larger teacher, DPO",
}


def sides(numbers: int, layers: int, rope: int) -> dict[str, str]:
    """The conversions, each for all seeds, at a fourth of the source's numbers; a random start is drawn anew for each.
    rope: channels of the turned key of latents."""
    rank = numbers // layers // 4 - rope - 1
    eco = f"eco_mla(rank={rank}, rope={rope}"
    return {
        "mean pooling": "gqa(1)", "first head": "gqa(1, start='first')",
        "random heads": "gqa(1, start='random', seed=SEED)",
        "singular vectors": f"{eco})", "random latent": f"{eco}, start='random', seed=SEED)",
    }  # fmt: skip


def run(given: argparse.Namespace, tokenizer: Any, looked: Looked, side: str, seed: int) -> dict[str, Any]:
    """The losses of one side after its distillation from one seed, and before."""
    source = read_decoder(looked.model)
    made = conversion(side.replace("SEED", str(seed)))
    made.check(source)
    student = made.build(source, looked)
    windows = Book.of(tokenizer, "test").evenly(given.windows, given.tokens)
    before = losses(student, windows[:16])
    how = Distilling(given.steps, batch=1, tokens=128, seed=seed)
    with TemporaryDirectory() as folder:
        distilled(student, looked.model, Book.of(tokenizer, "tune"), how, Path(folder), side, lambda *told: None)
    with torch.no_grad():
        logits, said = (one(input_ids=windows, use_cache=False).logits for one in (student, looked.model))
    after = F.cross_entropy(logits[:, :-1].transpose(1, 2), windows[:, 1:], reduction="none").mean(1).tolist()
    apart = divergence(logits, said).tolist()
    return {"numbers": made.cache_numbers(source), "before": before, "losses": after, "apart": apart}


def mean(runs: list[dict[str, Any]], what: str) -> list[float]:
    """By window, the mean over seeds."""
    return [sum(each) / len(runs) for each in zip(*(one[what] for one in runs), strict=True)]


def paired(found: dict[str, Any], side: str, other: str, what: str = "losses") -> Interval:
    """By how much a side's figure is above another's."""
    return of_strata([[a - b for a, b in zip(mean(found[side], what), mean(found[other], what), strict=True)]])


def tells(found: dict[str, Any], source: list[float]) -> bool:
    """Whether the source certainly reads the windows better than what it was made into, so that a lower loss of a start
    means that more was kept."""
    gaps = [a - b for a, b in zip(mean(found["mean pooling"], "losses"), source, strict=True)]
    return of_strata([gaps]).low > 0


def findings(found: dict[str, Any], source: list[float], host: str, command: str) -> list[Finding]:
    """What the run shows of rows 233 and 272; nothing on windows that the source reads no better."""
    if not tells(found, source):
        return []
    parts = {
        233: [part(f"nats of loss from the {one}, minus those from the mean", paired(found, one, "mean pooling"),
                   control=one, above=0.0) for one in ("first head", "random heads")],
        272: [part(f"nats of {name} from a random latent, minus those from singular vectors",
                   paired(found, "random latent", "singular vectors", what), control="a random latent", above=0.0)
              for what, name in (("losses", "loss"), ("apart", "divergence from the source"))],
    }  # fmt: skip
    processor = str(machine()["processor"])
    return [
        Finding(row=row, says=SAYS[row], host=host, command=command, machine=processor, date=str(date.today()),
                parts=tuple(own), leaves_out=LEAVES[row])
        for row, own in parts.items()
    ]  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    tokenizer, model = load_pair(embedded_model() if given.model == "embedded" else given.model, "float32")
    looked = Looked(model, Book.of(tokenizer, "tune").evenly(16, 128))
    source = read_decoder(model)
    given.state.mkdir(parents=True, exist_ok=True)
    told = sides(source.cache_numbers, len(source.layers), source.head_dim // 2)
    own = losses(model, Book.of(tokenizer, "test").evenly(given.windows, given.tokens))
    found: dict[str, Any] = {name: [] for name in told}
    for seed in range(3):
        for name, sentence in told.items():
            make = partial(run, given, tokenizer, looked, sentence, seed)
            key = f"starts-{given.model.split('/')[-1]}-{given.windows}-{given.tokens}-{given.steps}-{name}-{seed}"
            found[name].append(once(given.state, key.replace(" ", "_"), make))
            last = found[name][-1]
            print(f"{name}, seed {seed}: loss {sum(last['before']) / len(last['before']):.3f} before, "
                  f"{sum(last['losses']) / given.windows:.3f} after {given.steps} steps, {last['numbers']} numbers a "
                  f"token of {source.cache_numbers}", flush=True)  # fmt: skip
    command = "python benchmarks/convert_starts.py embedded --state out/convert --json docs/data/convert/starts.json"
    host = f"{given.model}, {given.windows} windows of {given.tokens} tokens, {given.steps} steps, 3 seeds"
    print(f"source: perplexity {math.exp(sum(own) / len(own)):.1f}")
    if not tells(found, own):
        print("rows 233 and 272: not judged, as the source reads these windows no better than what was made of it")
    for one in findings(found, own, host, command):
        print(f"row {one.row}: {one.state}; " + "; ".join(f"{p.says}: {p.found.mean:.3f} ({p.found.low:.3f} to "
                                                          f"{p.found.high:.3f})" for p in one.parts))  # fmt: skip
    if given.json:
        result = {"model": given.model, "host": host, "machine": machine(), "date": str(date.today()),
                  "command": command, "sides": told, "source": own,
                  "found": found, "findings": as_data(findings(found, own, host, command))}  # fmt: skip
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
