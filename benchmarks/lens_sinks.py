"""How many heads of a pretrained model rest on the first token, beside those that rest on another one.

    python benchmarks/lens_sinks.py smollm2 --out docs/data/lens/sinks.json

A head rests on a token where it gives it more than 0.3 of its attention in the mean over all later tokens. Texts are
pieces of a novel, each read on its own; intervals are 95 %, by bootstrap over texts.
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
from headwise.cli.given import place_of
from headwise.files import write_json
from headwise.findings import Finding, as_data, part
from headwise.lens import Text, looked_at
from headwise.lens.look import Look
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

RESTS = 0.3  # of a head's attention, from which on it rests on a token
OTHER = 8  # the token that the first is compared with


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--out", type=Path)
    return parser


def resting(subject: ModelSubject, ids: torch.Tensor) -> tuple[float, float]:
    """The share of a model's heads that rest on the first token of `ids [1, n]`, and of those that rest on OTHER."""

    def of(look: Look) -> torch.Tensor:
        shares = [look.to(torch.full_like(look.places, at))[:, at + 1 :].mean(1) > RESTS for at in (0, OTHER)]
        return torch.stack(shares)

    found = looked_at(subject, Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool)), of)
    first, other = torch.cat(list(found.values()), dim=1).float().mean(1).tolist()
    return first, other


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    place = place_of(given.model)
    subject = ModelSubject(load_model(place, "float32"))
    words = encode(load_tokenizer(place), novel()[: 8 * given.tokens * (given.texts + 4)], start=False)[0]
    texts = words[: given.texts * given.tokens].view(given.texts, 1, given.tokens)
    shares = [resting(subject, ids) for ids in texts]
    first, more = of_scores([one for one, _ in shares]), of_scores([one - other for one, other in shares])
    told = machine()
    finding = Finding(
        row=75, host=f"{given.model or 'embedded'}, {given.texts} pieces of {given.tokens} tokens of a novel, none of "
        "which begins with a token that always stands first",
        says="heads of a trained model rest on the first token, whichever it is",
        command=" ".join(["python benchmarks/lens_sinks.py", *sys.argv[1:]]),
        machine=f"{told['processor']}, {told['cores']} cores", date=date.today().isoformat(),
        parts=(
            part(f"share of heads that give the first token more than {RESTS}", first, above=0.1),
            part(f"the same less the share that rest on token {OTHER}", more, control=f"token {OTHER}", above=0.1),
        ),
        leaves_out="when sinks come up in training, learnt key biases, and attention that is not normalised",
    )  # fmt: skip
    for one in finding.parts:
        print(f"{one.says}: {one.found.mean:.3f} [{one.found.low:.3f}, {one.found.high:.3f}], {one.state}")
    if given.out is not None:
        rows = [
            [one.says, f"{one.found.mean:.3f} [{one.found.low:.3f}, {one.found.high:.3f}]"] for one in finding.parts
        ]
        write_json(
            given.out,
            {
                "source": finding.host, "command": finding.command, "machine": finding.machine, "date": finding.date,
                "model": given.model or "embedded", "columns": ["share of the heads", "mean over texts"], "rows": rows,
                "findings": as_data([finding]),
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
