"""What layers state of time: how processor time a token grows with a text, and what a decode step reads.

    python benchmarks/layer_time.py --json docs/data/layer_time.json

Lightning attention is first held against its quadratic form, in blocks of several sizes, with gradients, in pieces and
token by token; then it and softmax attention read texts of 1024 tokens and more, and a head of keys and values for each
of 16 heads of queries, and one for all, are read at 8192 tokens. Times are seconds of the processor on one thread, not
of the clock, taken in turns with what they are compared with, and only their ratios are told: leave the cores quiet all
the same, as caches and memory are shared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from headwise.attention import attend
from headwise.bench.judging.intervals import Interval
from headwise.bench.provenance import machine
from headwise.bench.statements import over_seeds
from headwise.files import write_json
from headwise.findings import Finding, as_data, part
from headwise.forms import Causal, Scoring
from headwise.layers.base import Dims, Streams
from headwise.layers.layer import AttentionLayer

DIMS = Dims(width=64, heads=4, head_dim=16, layer=7, layers=8)  # a late layer, whose heads forget slowly
BLOCKS = (16, 32, 64, 128, 256)
QUERIES, CHANNELS = 16, 64  # heads of queries of a decode step, and their channels
TOKENS, SHORT = 300, 1024  # of texts that are equal, with a ragged end in every block; and of the shortest timed
SAYS = {
    18: "Blocks give the quadratic form; a token of 16K takes as long as one of 1K, in softmax 4 times as long",
    55: "Blocks give the quadratic form with its gradients, and pieces too; a token of 64K takes as long as one of 1K",
    177: "A decode step with one head of keys and values takes less time than with one for each of 16 heads of queries",
}
LEAVES = {
    18: "positions, norms and gates of TransNormerLLM around the layer; a kernel: these are blocks of plain torch",
    55: "a kernel that keeps the memory on chip: these are blocks of plain torch",
    177: "speed of the clock, and a language model, which `benchmarks/shared_heads.toml` trains",
}


def lightning(seed: int, block: int = 64) -> AttentionLayer:
    """The layer with weights of a seed."""
    torch.manual_seed(seed)
    return AttentionLayer(f"heads | lightning(block={block})", DIMS)


def quadratic(mix: Any, streams: Streams) -> Tensor:
    """What heads read, by scores of all pairs of tokens times what is left between them."""
    terms = mix.terms(streams)
    total = terms.decay.cumsum(2)
    left = (total - total.transpose(2, 3)).tril().exp().tril()
    read: Tensor = ((terms.q @ terms.k.transpose(2, 3)) * left) @ terms.v
    return read


def in_blocks(mix: Any, streams: Streams) -> Tensor:
    """The same as the layer reads it."""
    read: Tensor = mix.parallel(streams)
    return read


def with_gradients(layer: AttentionLayer, read: Callable[[Any, Streams], Tensor], x: Tensor) -> list[Tensor]:
    """What is read of the streams of `x [batch, tokens, width]`, and gradients of a sum of it with respect to these."""
    streams = layer.streams(x, None, None, None)[0]
    leaves = [one.detach().clone().requires_grad_() for one in (streams.q, streams.k, streams.v)]
    out = read(layer.mix, replace(streams, q=leaves[0], k=leaves[1], v=leaves[2]))
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def off(found: list[Tensor], true: list[Tensor]) -> float:
    """The largest error over the largest entry, of the worst of some tensors."""
    pairs = zip(found, true, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def pieces(layer: AttentionLayer, x: Tensor, size: int, keeps: bool = True) -> Tensor:
    """What is read of a text piece by piece, with the state carried on or, `keeps=False`, forgotten."""
    read, state = [], None
    for one in x.split(size, dim=1):
        out, state = layer(one, state if keeps else None)
        read.append(out)
    return torch.cat(read, 1)


def equalities(seed: int) -> dict[str, float]:
    """How far attention in blocks is from its quadratic form in float64; and how far a layer that reads a text piece by
    piece is from one that reads it at once."""
    x = torch.randn(1, TOKENS, DIMS.width, generator=torch.Generator().manual_seed(seed))
    true = with_gradients(deepcopy(lightning(seed)).double(), quadratic, x.double())
    found = {"blocks": max(off(with_gradients(lightning(seed, size), in_blocks, x), true)
                           for size in BLOCKS)}  # fmt: skip
    with torch.no_grad():
        ways = {"steps": (1, True), "pieces": (97, True), "alone": (97, False)}
        whole = lightning(seed)(x)[0]
        for name, (size, keeps) in ways.items():
            found[name] = off([pieces(lightning(seed), x, size, keeps)], [whole])
    return found


def seconds(call: Callable[[], Any]) -> float:
    """Of the processor."""
    begun = process_time()
    call()
    return process_time() - begun


@torch.no_grad()
def growth(layer: AttentionLayer, long: int) -> float:
    """Processor time a token of a long text over that of a short one, which is read up to 16 times before it and after
    it; the first reading of all is not counted."""
    short, text = torch.randn(1, SHORT, DIMS.width), torch.randn(1, long, DIMS.width)
    times = min(16, long // SHORT)
    layer(text)
    before = [seconds(lambda: layer(short)) for _ in range(times)]
    own = seconds(lambda: layer(text))
    after = [seconds(lambda: layer(short)) for _ in range(times)]
    return (own / long) / (sum(before + after) / (2 * times * SHORT))


def decode(tokens: int, seed: int) -> float:
    """Processor time of attention of one token with 16 heads of keys and values, over that with one head of them."""
    drawn, total = torch.Generator().manual_seed(seed), dict[int, float]()
    given = {}
    for heads in (1, QUERIES):
        q = torch.randn(heads, QUERIES // heads, 1, CHANNELS, generator=drawn)
        given[heads] = (q, *torch.randn(2, heads, tokens, CHANNELS, generator=drawn))
    for turn in range(44):
        for heads, streams in given.items():
            own = seconds(lambda streams=streams: attend(*streams, Causal(), Scoring(CHANNELS**-0.5)))  # type: ignore[misc]
            total[heads] = total.get(heads, 0.0) + (own if turn >= 4 else 0.0)
    return total[QUERIES] / total[1]


def measured(given: argparse.Namespace) -> dict[str, list[float]]:
    """Every figure, a number a seed."""
    middle, softmax = given.longest // 4, AttentionLayer("rope", DIMS)
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        own = equalities(seed)
        own |= {"middle": growth(lightning(seed), middle), "long": growth(lightning(seed), given.longest)}
        own |= {"softmax": growth(softmax, middle), "decode": decode(given.longest // 8, seed)}
        for name, value in own.items():
            found.setdefault(name, []).append(value)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3g}" for name, value in own.items()), flush=True)
    return found


def findings(found: dict[str, list[float]], command: str, longest: int) -> list[Finding]:
    """What the figures show of rows 18, 55 and 177."""

    def apart(name: str) -> Interval:
        return over_seeds([one - own for one, own in zip(found["alone"], found[name], strict=True)])

    def varies(name: str) -> Interval:
        return over_seeds([abs(one - 1) for one in found[name]])

    over = over_seeds([one / own for one, own in zip(found["softmax"], found["middle"], strict=True)])
    of_time = "processor time a token at {} tokens over that at 1024: how far from 1"
    blocks = part(
        "what is read, and its gradients, in blocks of 16 to 256 tokens, from the quadratic form",
        over_seeds(found["blocks"]),
        below=1e-5,
    )
    parts = {
        18: (
            blocks,
            part("outputs token by token, from those of the text at once", over_seeds(found["steps"]), below=1e-5),
            part("how much farther off are pieces without memory", apart("steps"), "pieces alone", above=1e-3),
            part(of_time.format(longest // 4), varies("middle"), below=0.15),
            part("times that softmax attention's grows, over those of its own", over, "softmax attention", above=4.0),
        ),
        55: (
            blocks,
            part("outputs in pieces of 97 tokens, from the whole text's", over_seeds(found["pieces"]), below=1e-5),
            part("how much farther off are pieces without memory", apart("pieces"), "pieces alone", above=1e-3),
            part(of_time.format(longest), varies("long"), below=0.15),
        ),
        177: (
            part(f"processor time of a step at {longest // 8} tokens with 16 heads of keys and values, over that with "
                 "one", over_seeds(found["decode"]), "a head of keys and values each", above=1.0),
        ),
    }  # fmt: skip
    own = machine()
    return [
        Finding(
            row=row, says=SAYS[row], host=f"random weights, one thread; {len(found['blocks'])} seeds",
            command=command, machine=f"{own['processor']}, {own['cores']} cores", date=str(date.today()),
            parts=told, leaves_out=LEAVES[row],
        )
        for row, told in parts.items()
    ]  # fmt: skip


def table(own: list[Finding], command: str) -> dict[str, Any]:
    """The findings as `headwise/cli/figures.py` has tables."""
    rows = [
        [str(one.row), p.says, f"{p.found.mean:.3g} ({p.found.low:.3g} to {p.found.high:.3g})",
         f"above {p.above:g}" if p.above is not None else f"below {p.below:g}", p.state]
        for one in own for p in one.parts
    ]  # fmt: skip
    columns = ["row", "measured", "over seeds", "limit", "so it is"]
    told = {"machine": own[0].machine, "date": own[0].date, "columns": columns, "rows": rows}
    return {"source": f"`{command}`", "command": command, "model": None} | told


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=65536, help="Tokens of the longest text.")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    torch.set_num_threads(1)
    found = measured(given)
    command = f"python benchmarks/{Path(__file__).name} --json {given.json}"
    own = findings(found, command, given.longest)
    for one in own:
        print(f"row {one.row}, {one.state}: " + "; ".join(f"{p.says}: {p.found.mean:.3g}" for p in one.parts))
    if given.json is not None:
        write_json(given.json, table(own, command) | {"findings": as_data(own)})


if __name__ == "__main__":
    main()
