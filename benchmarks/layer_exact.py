"""What papers state of layers that holds to rounding or not at all: that a layer is another one in its limit cases, and
that pieces and single tokens read as its equation says. A layer without a limit case is not asked: what its equation is
held to would be its own.

    python benchmarks/layer_exact.py --json docs/data/layer_exact.json

Every part of a layer that stands for published rows, with random weights, once for each of several seeds. Its control
for the first is the same layer with its state forgotten half way, and for a limit case the layer as it is.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwise.bench.provenance import machine, versions
from headwise.bench.statements import over_seeds
from headwise.files import write_json
from headwise.findings import Finding, Part, as_data, part
from headwise.layer_parts import Limit, all_layer_parts
from headwise.layers.base import Dims
from headwise.layers.composition import SMALL
from headwise.layers.layer import AttentionLayer
from headwise.layers.sentence import LayerSentence

DIMS = Dims(width=24, heads=4, head_dim=6, layer=3, layers=4)
TOKENS, SEEDS = 20, range(8)
PIECES, LIMIT, APART = 1e-4, 1e-5, 1e-3  # what is equal may differ by so much, and what is not must by more
SAYS = (
    "in pieces and single tokens it reads as its equation says, and is the other layer in its limit cases if it has any"
)
FORGOTTEN = "a state that is forgotten half way"
USUAL = ("aaren",)  # parts whose usual projection makes them their limit case, so that there is no other way to ask
LEFT_OUT = "what the row states of trained models, of speed and of memory"
COMMAND = "python benchmarks/layer_exact.py --json docs/data/layer_exact.json"


def layer(sentence: str, seed: int) -> AttentionLayer:
    """A layer with random weights under which every part matters."""
    torch.manual_seed(seed)
    made = AttentionLayer(sentence, DIMS)
    for weight in made.parameters():
        weight.mul_(2).add_(torch.randn_like(weight), alpha=0.1)
    return made


def inputs(seed: int) -> Tensor:
    return torch.randn(2, TOKENS, DIMS.width, generator=torch.Generator().manual_seed(1000 + seed))


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference of any number, as a share of the largest that is expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def in_pieces(name: str, seed: int) -> tuple[float, float]:
    """How far half a text and then its tokens one by one are from the equation; and the same where the state is
    forgotten between the two."""
    made, x, half = layer(SMALL.get(name, name), seed), inputs(seed), TOKENS // 2
    plain, (first, state) = made.plain(x), made(x[:, :half])
    read = [first]
    for place in range(half, TOKENS):
        one, state = made(x[:, place : place + 1], state)
        read.append(one)
    return off(torch.cat(read, 1), plain), off(made(x[:, half:])[0], plain[:, half:])


def in_limit(name: str, limit: Limit, seed: int) -> tuple[float, float]:
    """How far a layer in its limit case is from the other one; and how far the layer as it is."""
    limited, own = layer(limit.of or SMALL.get(name, name), seed), layer(SMALL.get(name, name), seed)
    streams = limit.change(limited.streams(inputs(seed), None, None, None)[0])
    other = LayerSentence.parse(limit.other).reader.plain(streams)
    as_it_is = own.mix.parallel(own.streams(inputs(seed), None, None, None)[0])
    return off(limited.mix.parallel(streams), other), off(as_it_is, other)


def parts(says: str, most: float, control: str, pairs: list[tuple[float, float]]) -> list[Part]:
    """That the first of each pair is below `most`, and that the control's is farther off."""
    own = part(says, over_seeds([one for one, _ in pairs]), below=most)
    apart = over_seeds([other - one for one, other in pairs])
    return [own, part(f"{says}: how much farther off is {control}", apart, control, above=APART)]


def of_part(name: str, cls: Any) -> list[Part]:
    """What is measured of one part of a layer."""
    found = parts(f"{name} in pieces, from its equation", PIECES, FORGOTTEN, [in_pieces(name, seed) for seed in SEEDS])
    for limit in cls.card.equals:
        own = parts(
            f"{name} with {limit.says}", LIMIT, f"{name} as it is", [in_limit(name, limit, seed) for seed in SEEDS]
        )
        found += own[:1] if name in USUAL else own
    return found


@torch.no_grad()
def findings(rows: list[int] | None = None) -> list[Finding]:
    """One for each row that parts of layers stand for, or of these `rows` alone."""
    by_row: dict[int, list[tuple[str, Any]]] = {}
    for name, cls in all_layer_parts().items():
        for row in cls.card.systems:  # type: ignore[attr-defined]
            if cls.card.equals and (rows is None or row in rows):  # type: ignore[attr-defined]
                by_row.setdefault(row, []).append((name, cls))
    own = machine()
    return [
        Finding(
            row=row, says=f"{', '.join(cls.card.title for _, cls in known)}: {SAYS}",
            host=f"one layer of {DIMS.width} channels and {DIMS.heads} heads, {TOKENS} tokens; {len(SEEDS)} seeds",
            command=COMMAND, machine=f"{own['processor']}, {own['cores']} cores", date=date.today().isoformat(),
            parts=tuple(one for name, cls in known for one in of_part(name, cls)), leaves_out=LEFT_OUT, equations=True,
        )
        for row, known in sorted(by_row.items())
    ]  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", help="Of the list of systems; all by default.")
    return parser


def main() -> None:
    """Measure, print a line a row, and write."""
    given = arguments().parse_args()
    found = findings(given.rows)
    for one in found:
        worst = max(part.found.high for part in one.parts if not part.control)
        print(f"row {one.row}, {one.state}: at most {worst:.1e} off; {one.says}")
    told = {"machine": machine(), "versions": versions(), "command": COMMAND}
    if given.json is not None:
        write_json(given.json, told | {"findings": as_data(found)})


if __name__ == "__main__":
    main()
