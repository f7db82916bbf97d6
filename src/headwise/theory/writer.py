"""A small language model of the novel's bytes, whose layers are given to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.theory.decoder import Decoder, Made, seeded
from headwise.theory.fitting import adam, generator
from headwise.theory.pieces import drawn, held

BYTES, WIDTH, TOKENS, ROWS, RATE = 256, 64, 64, 16, 3e-3


class Sentence(nn.Module):
    """The layer of a sentence, [batch, tokens, width] -> the same shape."""

    def __init__(self, text: str, dims: Dims) -> None:
        super().__init__()
        self.layer = AttentionLayer(text, dims)

    def forward(self, x: Tensor) -> Tensor:
        """What is read of `x`."""
        return self.layer(x)[0]


def writer(make: Made, layers: int, seed: int, width: int = WIDTH) -> Decoder:
    """A model from the start of its seed, whose layers are what `make` makes."""
    return seeded(seed, lambda: Decoder(nn.Embedding(BYTES, width), [make() for _ in range(layers)], width, BYTES))


def loss_of(model: nn.Module, pieces: Tensor) -> Tensor:
    """The mean loss of the next byte in `pieces [batch, tokens + 1]`, nats."""
    return cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def taught(model: nn.Module, name: str, seed: int, steps: int, learned: Sequence[Tensor] | None = None) -> None:
    """Trains a model, or what is `learned` of it, on pieces that are the same for all models of a name and seed."""
    chance = generator(name, seed)
    adam([*model.parameters()] if learned is None else learned,
         lambda: loss_of(model, drawn(ROWS, TOKENS, chance)), steps, RATE)  # fmt: skip


@torch.no_grad()
def held_loss(model: nn.Module) -> float:
    """The mean loss on pieces that are never trained on."""
    return float(loss_of(model, held(TOKENS)))
