"""What TransMLA's steps are worth: a model as latent attention at one size of its cache, with each step left out.

    python benchmarks/convert_latent.py smollm2 --state out/convert --json docs/data/convert/latent.json

Nothing is trained. A side is a conversion; all but those that cut nothing hold as many numbers a token. The loss is that of
windows of the shipped novel's first book, moments are those of its second; differences are paired by window, with the
bootstrap's 95 % interval. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headwise.bench.judging.intervals import Interval, of_strata
from headwise.bench.provenance import machine
from headwise.conversions import conversion
from headwise.convert.texts import Book, losses
from headwise.findings import Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import Decoder, read_decoder

LEFT_OUT = {"without rotation": "rotate=False", "without balance": "balance=False"}


def sides(source: Decoder, fold: int) -> dict[str, str]:
    """The conversions at half the numbers of the source, of which a turned head is a part; and without a cut."""
    rank = source.cache_numbers // len(source.layers) // 2 - source.head_dim
    half = f"rank={rank}, rope={source.head_dim}"
    found = {"half": f"mla({half})"} | {name: f"mla({half}, {knob})" for name, knob in LEFT_OUT.items()}
    found["exact"] = "mla"
    found["without both"] = f"mla({half}, rotate=False, balance=False)"
    found |= {f"folded by {fold}": f"mla({half}, fold={fold})"} if fold > 1 else {}
    return found | {"one turned head, nothing cut": f"mla(rope={source.head_dim})"}


def run(model: Any, source: Decoder, sentence: str, looked: Looked, windows: torch.Tensor) -> dict[str, Any]:
    """The losses of one conversion, and how far its logits are from the source's on the first window."""
    made = conversion(sentence)
    made.check(source)
    built = made.build(source, looked)
    with torch.no_grad():
        own, other = (one(input_ids=windows[:1], use_cache=False).logits for one in (model, built))
    apart = float((own - other).abs().max() / own.abs().max())
    return {"numbers": made.cache_numbers(source), "apart": apart, "losses": losses(built, windows)}


def paired(found: dict[str, Any], side: str, other: str) -> Interval:
    """By how many nats a side's loss is above another's."""
    pairs = zip(found[side]["losses"], found[other]["losses"], strict=True)
    return of_strata([[a - b for a, b in pairs]])


def finding(found: dict[str, Any], host: str, command: str) -> Finding:
    """What the run shows of row 269."""
    exact = of_strata([[abs(x) for x in (a - b for a, b in zip(found["exact"]["losses"], found["source"]["losses"],
                                                              strict=True))]])  # fmt: skip
    parts = [part("nats by which the loss of the uncut model is off", exact, below=1e-4)]
    parts += [
        part(f"nats of loss {name}, minus those with it", paired(found, name, "half"), control=name, above=0.0)
        for name in LEFT_OUT
    ]
    says = "Uncut, it computes what the model does; at half the cache its loss is lower with each of its steps."
    told = str(machine()["processor"])
    return Finding(row=269, says=says, host=host, command=command, machine=told, date=str(date.today()),
                   parts=tuple(parts), leaves_out="training after the conversion")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--fold", type=int, default=2)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    quiet()
    tokenizer, model = load_pair(given.model, "float32")
    source = read_decoder(model)
    looked = Looked(model, Book.of(tokenizer, "tune").evenly(16, 128))
    windows = Book.of(tokenizer, "test").evenly(given.windows, given.tokens)
    key = f"{Path(given.model).name}-{given.windows}-{given.tokens}"
    given.state.mkdir(parents=True, exist_ok=True)
    found = {"source": once(given.state, f"{key}-source", lambda: {"losses": losses(model, windows)})}
    found["source"] |= {"numbers": source.cache_numbers, "apart": 0.0}
    told = sides(source, given.fold)
    for name, sentence in told.items():
        make = partial(run, model, source, sentence, looked, windows)
        found[name] = once(given.state, f"{key}-{sentence}", make)
        above = paired(found, name, "source")
        mean = sum(found[name]["losses"]) / given.windows
        print(f"{name}: {sentence}, {found[name]['numbers']} numbers a token, perplexity {math.exp(mean):.2f}, "
              f"{above.mean:+.4f} nats ({above.low:.4f} to {above.high:.4f}), logits {found[name]['apart']:.1e} apart",
              flush=True)  # fmt: skip
        if given.json and {"exact", *LEFT_OUT} <= set(found):
            write(given, told, found)


def write(given: argparse.Namespace, told: dict[str, str], found: dict[str, Any]) -> None:
    """The result as far as it is there."""
    command = f"python benchmarks/convert_latent.py {given.model} --state out/convert --json docs/data/convert/latent.json"
    host = f"{Path(given.model).name}, {given.windows} windows of {given.tokens} tokens"
    result = {"model": Path(given.model).name, "machine": machine(), "command": command, "sides": told,
              "found": found, "findings": as_data([finding(found, host, command)])}  # fmt: skip
    given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
