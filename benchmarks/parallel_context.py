"""What reading documents in pieces costs, and what its two fixes give back: accuracy and the entropy of attention.

    python benchmarks/parallel_context.py embedded --documents 8 --questions 64

Writes docs/data/context/MODEL-parallel.json, or --json FILE. Entropy is the mean over layers, heads and the tokens of
the question, in nats. With --keep FOLDER, what is finished is kept there, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from headwise.assets import embedded_model
from headwise.bench.job import encode
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.provenance import machine
from headwise.cli.progress import Watcher
from headwise.context import arrange
from headwise.context.answers import PieceReader
from headwise.context.asked import encoded
from headwise.context.layout import Pieces
from headwise.context.material import Item, facts
from headwise.files import write_json
from headwise.findings import ENOUGH, Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet

DATA = Path(__file__).parents[1] / "docs" / "data" / "context"
READ = {
    "one piece: full attention": Pieces(1),
    "2 pieces, naive": Pieces(2, sinks=False),
    "4 pieces, naive": Pieces(4, sinks=False),
    "each by itself, naive": Pieces(0, sinks=False),
    "each by itself, shared sinks": Pieces(0),
    "each by itself, top 2": Pieces(0, sinks=False, top=2),
    "each by itself, shared sinks and top 2": Pieces(0, top=2),
}


def measured(model: Any, tokenizer: Any, item: Item, pieces: Pieces) -> dict[str, float]:
    """Whether the answer is right, and the entropy of the question's attention."""
    made = arrange(model, tokenizer, item.documents, item.question, "as_given", item.wording)
    made = replace(made, pieces=pieces)
    parts = encoded(tokenizer, made.wording, made.documents, made.question)
    layout = pieces.layout([part.shape[1] for part in parts])
    reader = PieceReader(model, layout, pieces.top, entropy := [])
    logits, right = reader.read(torch.cat(parts, dim=1)), True
    for token in encode(tokenizer, item.answers[0])[0].tolist():
        right = int(logits.argmax(-1)) == token
        if not right:
            break
        logits = reader.go_on(token)
    return {"right": float(right), "entropy": sum(entropy) / len(entropy)}


def finding(found: dict[str, list[dict[str, float]]], host: str, facts: dict[str, str]) -> Finding:
    """What the seven ways show of row 181. facts: command, machine and date."""

    def more(what: str, one: str, other: str) -> Interval:
        return of_strata([[a[what] - b[what] for a, b in zip(found[one], found[other], strict=True)]])

    whole, naive, sinks, top, both = (list(READ)[place] for place in (0, 3, 4, 5, 6))
    entropy = "the entropy of the question's attention"
    parts = (
        part(f"{entropy} rises with pieces", more("entropy", naive, whole), above=0.0),
        part(f"{entropy} falls with shared sinks", more("entropy", sinks, naive), below=0.0),
        part(f"{entropy} falls where two pieces are chosen", more("entropy", top, naive), below=0.0),
        part("naive reading loses answers", more("right", naive, whole), below=0.0),
        part("both fixes give answers back", more("right", both, naive), above=0.0, control="naive reading"),
    )
    says = "Reading in pieces spreads attention and loses answers; a shared beginning and a choice of pieces cure both"
    return Finding(row=181, says=says, host=host, **facts, parts=parts)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("model")
    read.add_argument("--documents", type=int, default=8)
    read.add_argument("--questions", type=int, default=64)
    read.add_argument("--keep", type=Path)
    read.add_argument("--json", type=Path, help="the table of figures; a page's own by default")
    return read


def main() -> None:
    """Measure, write, print."""
    asked = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    tokenizer, model = load_pair(embedded_model() if asked.model == "embedded" else asked.model)
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in READ}
    with Watcher() as watch:
        for number, item in enumerate(facts(asked.questions, asked.documents)):
            for place, (name, pieces) in enumerate(READ.items()):
                watch("reading in pieces", number, asked.questions)
                found[name].append(
                    once(asked.keep, f"{number}-{place}", lambda: measured(model, tokenizer, item, pieces))  # noqa: B023
                )
    rows = []
    for name, own in found.items():
        right = of_scores([one["right"] for one in own])
        gaps = [100 * (one["right"] - full["right"]) for one, full in zip(own, next(iter(found.values())), strict=True)]
        gap = of_strata([gaps])
        entropy = of_strata([[one["entropy"] for one in own]])
        rows.append(
            [
                name,
                f"{100 * right.mean:.0f} [{100 * right.low:.0f}, {100 * right.high:.0f}]",
                f"{gap.mean:+.0f} [{gap.low:+.0f}, {gap.high:+.0f}]",
                f"{entropy.mean:.3f} [{entropy.low:.3f}, {entropy.high:.3f}]",
            ]
        )
        print(*rows[-1], sep=" | ")
    origin = {
        "command": f"python benchmarks/{Path(__file__).name} {asked.model} --documents {asked.documents} "
        f"--questions {asked.questions}",
        "machine": f"{machine()['processor']}, {machine()['cores']} cores",
        "date": str(date.today()),
    }
    host = f"{asked.model}, {asked.questions} questions of {asked.documents} documents"
    figures = {
        "source": "a run of its own",
        **origin,
        "model": asked.model,
        "columns": ["read in", "right, %", "more than in one piece", "entropy of the question's attention, nats"],
        "rows": rows,
        "findings": as_data([finding(found, host, origin)] if asked.questions >= ENOUGH else []),
    }
    out = asked.json or DATA / f"{asked.model}-parallel.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, figures)


if __name__ == "__main__":
    main()
