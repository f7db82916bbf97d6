"""Medusa's heads: each guesses one of the next tokens by itself, knowing nothing of the guesses before it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy, silu

from headwise.decoding.heads.base import Heads, Taught, heads

FADING = 0.8  # weight of a guess in the loss beside that of the one before


class ByItself(Heads):
    """A residual SiLU block for each guess, which reads them all from one state."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.blocks = torch.nn.ModuleList(_nothing(width) for _ in range(depth))

    def step(self, place: int, carry: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return carry + silu(self.blocks[place](carry)), carry

    def loss(self, place: int, out: torch.Tensor, taught: Taught) -> torch.Tensor:
        return FADING**place * cross_entropy(self.words(place, out), taught.tokens)


@heads("medusa")
class MedusaHeads(ByItself):
    """On the model's state, with an output embedding of its own for each guess, which begins as the model's (Cai et
    al., arXiv 2401.10774, section 2.1.1)."""

    def __init__(self, model: Any, depth: int) -> None:
        output = model.get_output_embeddings().weight.detach()
        super().__init__(output.shape[1], depth)
        self.outputs = torch.nn.ParameterList(output.float().clone() for _ in range(depth))

    def words(self, place: int, out: torch.Tensor) -> torch.Tensor:
        return out @ self.outputs[place].T


def _nothing(width: int) -> torch.nn.Linear:
    """A layer that gives 0 until it is trained."""
    layer = torch.nn.Linear(width, width)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer
