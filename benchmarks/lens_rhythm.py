"""Whether a token that later ones come back to counts more for what follows: WAAD and FAI of a pretrained model.

    python benchmarks/lens_rhythm.py smollm2 --out docs/data/lens/rhythm.json

In each of several pieces of a novel, the token of the highest FAI, that of the lowest and one by chance are exchanged
for other tokens of the text, a few each. What that does is told by how far the distributions 10 to 50 tokens on differ
(KL divergence, in nats). Intervals are 95 % over pieces.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

import torch

from headwise.assets import novel
from headwise.bench.job import encode
from headwise.bench.judging.intervals import of_scores
from headwise.bench.provenance import machine
from headwise.calibrate.subject import ModelSubject
from headwise.cli.figures import Figures
from headwise.cli.given import place_of
from headwise.cli.progress import Watcher
from headwise.files import write_text
from headwise.findings import Finding, as_data, part
from headwise.lens import Text
from headwise.lens.rhythm import SINCE, UNTIL, rhythm
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

BEFORE = 1000  # tokens of the novel that come before the first piece
EXCHANGES = 4  # other tokens that are put in the place of one
FIRST = 8  # token from which on one is exchanged, as the first ones are looked at from everywhere


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96, help="of a text")
    parser.add_argument("--out", type=Path)
    return parser


@torch.no_grad()
def changed(subject: ModelSubject, ids: torch.Tensor, place: int, chance: torch.Generator) -> float:
    """How far the distributions after `place` of `ids [1, n]` move as its token is exchanged."""
    rows = ids.repeat(1 + EXCHANGES, 1)
    rows[1:, place] = ids[0, torch.randint(ids.shape[1], (EXCHANGES,), generator=chance)]
    told = subject.model(rows, use_cache=False).logits[:, place + SINCE : place + UNTIL + 1].float().log_softmax(-1)
    return float((told[0].exp() * (told[0] - told[1:])).sum(-1).mean())


def exchanged(subject: ModelSubject, texts: torch.Tensor, watch: Watcher) -> dict[str, list[float]]:
    """By which token of each of `texts [n, tokens]` is exchanged, what that does to it."""
    chance = torch.Generator().manual_seed(0)
    by: dict[str, list[float]] = {"highest": [], "lowest": [], "by chance": []}
    for number, ids in enumerate(texts[:, None]):
        watch("exchanging tokens", number, len(texts))
        fai = rhythm(subject, Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool))).fai[: ids.shape[1] - UNTIL]
        random = int(torch.randint(FIRST, len(fai), (), generator=chance))
        chosen = int(fai[FIRST:].argmax()) + FIRST, int(fai[FIRST:].argmin()) + FIRST, random
        for values, at in zip(by.values(), chosen, strict=True):
            values.append(changed(subject, ids, at, chance))
    return by


def finding(host: str, by: dict[str, list[float]]) -> Finding:
    """What row 315 comes to."""
    high, low, random = by.values()
    told = machine()
    return Finding(
        row=315, host=host,
        says="exchanging the token that global heads come back to most changes what follows more than exchanging "
        "others does",
        command=" ".join([f"python benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        machine=f"{told['processor']}, {told['cores']} cores", date=date.today().isoformat(),
        parts=(
            part("texts in which the highest changes more than the lowest, share",
                 of_scores([float(a > b) for a, b in zip(high, low, strict=True)]), above=0.8),
            part("what the highest changes, nats, less what a token by chance does",
                 of_scores([a - b for a, b in zip(high, random, strict=True)]), control="a token by chance", above=0.0),
        ),
        leaves_out="WAAD at the starts of chunks of reasoning, planted anchors, and reinforcement learning",
    )  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    place = place_of(given.model)
    subject = ModelSubject(load_model(place, "float32"))
    most = given.texts * given.tokens
    words = encode(load_tokenizer(place), novel()[: 8 * (BEFORE + most)], start=True)[0, BEFORE:]
    with Watcher() as watch:
        by = exchanged(subject, words[:most].view(given.texts, given.tokens), watch)
    found = finding(f"{given.model or 'embedded'}, {given.texts} pieces of {given.tokens} tokens of a novel", by)
    for name, values in by.items():
        print(f"{name}: {sum(values) / len(values):.4f} nats")
    for one in found.parts:
        print(f"{one.says}: {one.found.mean:.3f} [{one.found.low:.3f}, {one.found.high:.3f}], {one.state}")
    if given.out is not None:
        write_text(given.out, told_of(given.model or "embedded", found).model_dump_json(indent=1) + "\n")


def told_of(model: str, found: Finding) -> Figures:
    """What was found as a table."""
    rows: list[list[str | float | int]] = [
        [one.says, f"{one.found.mean:.3f} [{one.found.low:.3f}, {one.found.high:.3f}]"] for one in found.parts
    ]
    return Figures(
        source=found.host, command=found.command, machine=found.machine, date=found.date, model=model,
        columns=["exchanged", "mean over texts"], rows=rows, findings=as_data([found]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
