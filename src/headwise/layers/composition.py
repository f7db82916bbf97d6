"""Which parts of layers go together: every two of different slots, made into a small layer and asked; and how parts
are written in layers of a few tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headwise.errors import HeadwiseError
from headwise.layer_parts import LAYER_PARTS, SLOTS
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer

DIMS = Dims(width=16, heads=2, head_dim=8)
TOKENS = 3
# How parts are written that need a knob, or channels to turn.
WRITTEN = {"mla": "mla(8, rope=4)", "dual": "dual(1)"}
# How parts are written whose name alone is no layer of 4 heads of 6 channels, a slow one, or one that a dozen tokens
# are all too short for.
SMALL = {
    "mla": "mla(rank=5, rope=4) | rope", "performer": "performer(count=9)", "kda": "kda(rank=3)",
    "agents": "agents(count=3)", "vq": "vq(codes=4)", "nested": "nested(2)",
    "dual": "dual(2, relations=3, symbols=5)", "local": "local(3)", "sharded": "sharded(2, local=1, stride=2)",
    "shifted": "shifted(4, sinks=1)", "strided": "strided(3)", "here_or_all": "here_or_all(3)",
    "dynamic_mask": "dynamic_mask(4)", "landmark": "landmark(3, retrieve=2)", "combiner": "combiner(3)",
    "kolmogorov": "kolmogorov(5, hidden=3)", "codewords": "codewords(4, codes=3)", "clusters": "clusters(3)",
}  # fmt: skip


def pairs() -> Iterator[tuple[str, str, str]]:
    """Two parts of different slots, and "" where they make a layer that reads a text, else why they are refused."""
    for place, slot in enumerate(SLOTS):
        for other in SLOTS[place + 1 :]:
            for one in LAYER_PARTS[slot].all():
                for two in LAYER_PARTS[other].all():
                    yield one, two, _refusal(f"{WRITTEN.get(one, one)} | {WRITTEN.get(two, two)}")


@torch.no_grad()
def _refusal(sentence: str) -> str:
    """Why a sentence makes no layer; "" where it does."""
    try:
        AttentionLayer(sentence, DIMS)(torch.zeros(1, TOKENS, DIMS.width))
    except HeadwiseError as refused:
        return str(refused)
    return ""
