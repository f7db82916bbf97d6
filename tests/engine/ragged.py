"""Models whose layers differ in heads and widths, and sessions driven through them layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from headwise.engine.rehearsal import evict_waiting, listen, passages
from headwise.engine.session import Session
from headwise.forms import Scoring
from headwise.geometry import Geometry, LayerGeometry
from tests.contract.drive import columns

SCALE = 0.2
Calls = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # q [b, H, T, d], k [b, h, T, d], v [b, h, T, e] by layer

UNLIKE = Geometry(
    (
        LayerGeometry(4, 2, 32, 16),
        LayerGeometry(6, 3, 64, 32),
        LayerGeometry(4, 4, 16, 16, window=24),
        LayerGeometry(4, 1, 32, 64),
    ),
    4096,
)


def drawn(seed: int) -> Geometry:
    """A random model of one to five layers, no two of them alike but by chance."""
    draw = Random(seed)
    layers = []
    for _ in range(draw.randint(1, 5)):
        heads = draw.randint(1, 4)
        widths = draw.choice((16, 32, 64)), draw.choice((16, 32, 64))
        window = draw.choice((None, None, None, 24))
        layers.append(LayerGeometry(heads * draw.choice((1, 2, 4)), heads, *widths, window))
    return Geometry(tuple(layers), 4096)


def calls(shape: Geometry, tokens: int, rows: int = 1, seed: int = 0) -> Calls:
    """What every layer is handed of so many tokens: vectors around a mean per head, so that queries attend
    unevenly."""
    random = torch.Generator().manual_seed(seed)

    def some(heads: int, width: int) -> torch.Tensor:
        around = torch.randn(rows, heads, 1, width, generator=random)
        return torch.randn(rows, heads, tokens, width, generator=random) + around / 2

    return [
        (some(one.query_heads, one.key_width), some(one.kv_heads, one.key_width), some(one.kv_heads, one.value_width))
        for one in shape.layers
    ]


def feed(session: Session, given: Calls, start: int, count: int, phase: str, **how: object) -> list[torch.Tensor]:
    """One step of all layers over tokens start..start+count-1: [b, H, count, e] by layer."""
    session.begin(count, phase, ids=columns(session.rows, start, count), **how)
    outs = [
        session.step(layer, *(x[:, :, start : start + count] for x in one), Scoring(SCALE))
        for layer, one in enumerate(given)
    ]
    for passage in passages(session):
        for layer, one in enumerate(given):
            again = (torch.stack([x[row][:, ids] for row, ids in enumerate(passage.ids)]) for x in one)
            listen(session, passage, layer, *again, Scoring(SCALE))
    evict_waiting(session)
    session.commit()
    return outs


def run(session: Session, given: Calls, chunks: Sequence[int], steps: int) -> list[torch.Tensor]:
    """A prompt in chunks and `steps` new tokens: all that each layer put out, [b, H, T, e]."""
    outs, start = [], 0
    for size in chunks:
        outs.append(feed(session, given, start, size, "prefill", total=sum(chunks)))
        start += size
    outs += [feed(session, given, start + step, 1, "decode") for step in range(steps)]
    return [torch.cat(layer, dim=2) for layer in zip(*outs, strict=True)]
