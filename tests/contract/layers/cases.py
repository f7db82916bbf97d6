"""The layers that every law is asked about: one for each registered part, with texts that are padded and packed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headwise.layer_parts import LAYER_PARTS, Limit, all_layer_parts
from headwise.layers.base import PADDING, Dims
from headwise.layers.composition import SMALL
from headwise.layers.layer import AttentionLayer, LayerState
from headwise.layers.running import Blocked
from headwise.layers.sentence import LayerSentence

DIMS = Dims(width=24, heads=4, head_dim=6, layer=1, layers=4)
BLOCK = 4  # of running layers, so that a few tokens are several blocks
PARTS = tuple(all_layer_parts())
MIXES = tuple(LAYER_PARTS["mix"].all())
LIMITS = [(name, one) for name in (*MIXES, *PARTS) for one in all_layer_parts()[name].card.equals]  # type: ignore[attr-defined]
LIMITS = [case for place, case in enumerate(LIMITS) if case not in LIMITS[:place]]  # those of mixes first
# Lengths of texts in each batch row, the first of them padding.
PACKED = ((3, 6, 4), (0, 1, 12), (0, 13))


def sentence(name: str, block: int = BLOCK) -> LayerSentence:
    """A layer with this part, and else what it is usually with."""
    made = LayerSentence.parse(SMALL.get(name, name))
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
