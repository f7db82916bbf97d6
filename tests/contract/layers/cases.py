"""The layers that every law is asked about: one for each registered part, with texts that are padded and packed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headwise.layer_parts import LAYER_PARTS, Limit, all_layer_parts
from headwise.layers.base import PADDING, Dims
from headwise.layers.layer import AttentionLayer, LayerState
from headwise.layers.running import Blocked
from headwise.layers.sentence import LayerSentence

DIMS = Dims(width=24, heads=4, head_dim=6, layer=1, layers=4)
BLOCK = 4  # of running layers, so that a few tokens are several blocks
# How parts are written whose name alone is no layer, or a slow one.
WRITTEN = {
    "mla": "mla(rank=5, rope=4) | rope",
    "performer": "performer(count=9)",
    "kda": "kda(rank=3)",
    "agents": "agents(count=3)",
    "vq": "vq(codes=4)",
}
WRITTEN |= {"nested": "nested(2)", "dual": "dual(2, relations=3, symbols=5)"}
# Patterns whose usual sizes are longer than the texts here.
WRITTEN |= {
    "local": "local(3)", "sharded": "sharded(2, local=1, stride=2)", "shifted": "shifted(4, sinks=1)",
    "strided": "strided(3)", "here_or_all": "here_or_all(3)", "dynamic_mask": "dynamic_mask(4)",
    "landmark": "landmark(3, retrieve=2)", "combiner": "combiner(3)",
}  # fmt: skip
PARTS = tuple(all_layer_parts())
MIXES = tuple(LAYER_PARTS["mix"].all())
LIMITS = [(name, one) for name in (*MIXES, *PARTS) for one in all_layer_parts()[name].card.equals]  # type: ignore[attr-defined]
LIMITS = [case for place, case in enumerate(LIMITS) if case not in LIMITS[:place]]  # those of mixes first
# Lengths of texts in each batch row, the first of them padding.
PACKED = ((3, 6, 4), (0, 1, 12), (0, 13))


def sentence(name: str, block: int = BLOCK) -> LayerSentence:
    """A layer with this part, and else what it is usually with."""
    made = LayerSentence.parse(WRITTEN.get(name, name))
    return replace(made, mix=replace(made.mix, block=block)) if isinstance(made.mix, Blocked) else made


def layer(name: str, block: int = BLOCK, dtype: torch.dtype = torch.float32) -> AttentionLayer:
    """It as a module, with weights under which every part matters; the same at every call."""
    torch.manual_seed(7)
    made = AttentionLayer(sentence(name, block), DIMS)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(2).add_(torch.randn_like(weight), alpha=0.1)
    return made.to(dtype)


def inputs(tokens: int = 13, rows: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, tokens, DIMS.width, generator=torch.Generator().manual_seed(1)).to(dtype)


def segments() -> Tensor:
    """[3, 13]: the segments of PACKED."""
    rows = [[PADDING] * first + [n for n, count in enumerate(rest) for _ in range(count)] for first, *rest in PACKED]
    return torch.tensor(rows)


def in_pieces(made: AttentionLayer, x: Tensor, own: Tensor, cuts: tuple[int, ...]) -> tuple[Tensor, LayerState]:
    """The layer's output of tokens that come in pieces of these lengths, and the state after them."""
    found, state = [], None
    for piece, segment in zip(x.split(cuts, 1), own.split(cuts, 1), strict=True):
        out, state = made(piece, state, segment)
        found.append(out)
    assert state is not None
    return torch.cat(found, 1), state


def told(limit: tuple[str, Limit]) -> str:
    return f"{limit[0]}: {limit[1].says}"
