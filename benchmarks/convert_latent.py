"""What TransMLA's steps are worth: a model as latent attention at one size of its cache, with each step left out.

    python benchmarks/convert_latent.py smollm2 --state out/convert --json docs/data/convert/smollm2.json

Nothing is trained. A side is a conversion; all but those that cut nothing hold as many numbers a token. The loss is
that of windows of the shipped novel's first book, moments are those of its second; differences are paired by window,
with the bootstrap's 95 % interval. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headwise.assets import embedded_model
from headwise.bench.judging.intervals import of_strata
from headwise.bench.provenance import machine
from headwise.conversions import conversion
from headwise.convert.texts import Book, losses
from headwise.files import write_json
from headwise.findings import Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import Decoder, read_decoder

LEFT_OUT = {"without rotation": "rotate=False", "without balance": "balance=False"}
CUT = {2: "half", 4: "a fourth"}


def sides(source: Decoder, share: int) -> dict[str, str]:
    """The conversions at a share of the source's numbers, of which a turned head is a part; and without a cut."""
    rank = source.cache_numbers // len(source.layers) // share - source.head_dim
    cut = f"rank={rank}, rope={source.head_dim}"
    found = {CUT[share]: f"mla({cut})"} | {name: f"mla({cut}, {knob})" for name, knob in LEFT_OUT.items()}
    found |= {"exact": "mla", "without both": f"mla({cut}, rotate=False, balance=False)"}
    return found | {"folded by 2": f"mla({cut}, fold=2)", "one turned head": f"mla(rope={source.head_dim})"}


def run(model: Any, source: Decoder, sentence: str, looked: Looked, windows: torch.Tensor) -> dict[str, Any]:
    """The losses of one conversion, and how far its logits are from the source's on the first window."""
    made = conversion(sentence)
    made.check(source)
    built = made.build(source, looked)
    with torch.no_grad():
        own, other = (one(input_ids=windows[:1], use_cache=False).logits for one in (model, built))
    apart = float((own - other).abs().max() / own.abs().max())
    return {"numbers": made.cache_numbers(source), "apart": apart, "losses": losses(built, windows)}


def apart(found: dict[str, Any], side: str, other: str) -> list[float]:
    """By window, by how many nats a side's loss is above another's."""
    return [a - b for a, b in zip(found[side]["losses"], found[other]["losses"], strict=True)]


def findings(found: dict[str, Any], cut: str, host: str, command: str) -> list[Finding]:
    """What the run shows of row 269; nothing on windows that the source reads no better than what was made of it."""
    if of_strata([apart(found, cut, "source")]).low <= 0:
        return []
    off = of_strata([[abs(one) for one in apart(found, "exact", "source")]])
    parts = [part("nats by which the loss of the uncut model is off", off, below=1e-4)]
    parts += [
        part(f"nats of loss {name}, minus those with it", of_strata([apart(found, name, cut)]), control=name, above=0.0)
        for name in LEFT_OUT
    ]
    says = f"Uncut, it computes what the model does; at {cut} of the cache its loss is lower with each of its steps."
    processor = str(machine()["processor"])
    facts = {"host": host, "command": command, "machine": processor, "date": str(date.today())}
    return [Finding(row=269, says=says, parts=tuple(parts), leaves_out="training after the conversion", **facts)]


def write(given: argparse.Namespace, told: dict[str, str], found: dict[str, Any]) -> None:
    """The result as far as it is there."""
    name = Path(given.model).name
    share = f" --share {given.share}" if given.share != 2 else ""
    command = f"python benchmarks/{Path(__file__).name} {name}{share} --state out/convert --json {given.json}"
    host = f"{name}, {given.windows} windows of {given.tokens} tokens"
    own = as_data(findings(found, CUT[given.share], host, command))
    result = {"model": name, "host": host, "machine": machine(), "date": str(date.today()), "command": command,
              "sides": told, "found": found, "findings": own}  # fmt: skip
    write_json(given.json, result)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument(
        "--share", type=int, default=2, choices=CUT, help="2: half of the source's numbers, 4: a fourth"
    )
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Measure all sides, print each as it is found, and write the result."""
    given = arguments().parse_args()
    quiet()
    tokenizer, model = load_pair(embedded_model() if given.model == "embedded" else given.model, "float32")
    source = read_decoder(model)
    looked = Looked(model, Book.of(tokenizer, "tune").evenly(16, 128))
    windows = Book.of(tokenizer, "test").evenly(given.windows, given.tokens)
    key = f"{Path(given.model).name}-{given.windows}-{given.tokens}"
    given.state.mkdir(parents=True, exist_ok=True)
    found = {"source": once(given.state, f"{key}-source", lambda: {"losses": losses(model, windows)})}
    found["source"] |= {"numbers": source.cache_numbers, "apart": 0.0}
    told = sides(source, given.share)
    for name, sentence in told.items():
        make = partial(run, model, source, sentence, looked, windows)
        own = found[name] = once(given.state, f"{key}-{sentence}", make)
        above = of_strata([apart(found, name, "source")])
        perplexity = math.exp(sum(own["losses"]) / given.windows)
        nats = f"{above.mean:+.4f} nats ({above.low:.4f} to {above.high:.4f})"
        print(f"{name}: {sentence}, {own['numbers']} numbers a token, perplexity {perplexity:.2f}, {nats}, "
              f"logits {own['apart']:.1e} apart", flush=True)  # fmt: skip
        if given.json and {"exact", *LEFT_OUT} <= set(found):
            write(given, told, found)


if __name__ == "__main__":
    main()
