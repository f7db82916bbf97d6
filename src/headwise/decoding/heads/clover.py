"""Clover-2's drafter: each guess is read back into a small state, from which the next one is made."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, silu, smooth_l1_loss

from headwise.decoding.heads.base import Heads, Taught, heads

FADING = 0.8  # weight of a guess in the loss beside that of the one before
OF_WORDS = 0.1  # weight of the distilled probabilities in the loss beside the distance of the states
SPREAD = 0.01  # of the numbers that are drawn around the identity


def _near_identity(wide: torch.nn.Linear) -> torch.nn.Linear:
    """A layer that begins as the identity of its first inputs, but for small numbers."""
    with torch.no_grad():
        wide.weight.uniform_(-SPREAD, SPREAD)
        wide.weight[:, : wide.weight.shape[0]] += torch.eye(wide.weight.shape[0])
        wide.bias.zero_()
    return wide


class Regressive(torch.nn.Module):
    """Takes a token into a state (Clover's regressive attention block): by head, its value as far as state and token
    are alike."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.norm = torch.nn.RMSNorm(width)
        self.query, self.key = (_near_identity(torch.nn.Linear(width, width)) for _ in range(2))
        self.value = torch.nn.Linear(width, width)
        torch.nn.init.uniform_(self.value.weight, -SPREAD, SPREAD)
        torch.nn.init.zeros_(self.value.bias)

    def forward(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """State [n, d] and a token's embedding [n, d] -> the state [n, d] after it."""
        query, key = (x.unflatten(1, (self.parts, -1)) for x in (self.query(self.norm(state)), self.key(token)))
        alike = cosine_similarity(query, key, dim=2)
        return state + (self.value(token).unflatten(1, (self.parts, -1)) * alike[..., None]).flatten(1)


@heads("clover")
class CloverHeads(Heads):
    """A state that every token is read into, an augmenting block before the first guess, and the model's own output
    embedding (Xiao et al., Clover-2, arXiv 2408.00264, section 3)."""

    def __init__(self, model: Any, depth: int) -> None:
        super().__init__()
        output = model.get_output_embeddings().weight.detach().float()
        width, parts = output.shape[1], model.config.get_text_config().num_attention_heads
        parts = parts if width % parts == 0 else 1
        self.depth = depth
        self.register_buffer("output", output, persistent=False)  # the model's, which is frozen: not in the file
        self.output: torch.Tensor
        self.first, self.later = Regressive(width, parts), Regressive(width, parts)
        self.augment_norm, self.gate, self.up = torch.nn.RMSNorm(width), *_pair(width)
        self.down = torch.nn.Linear(4 * width, width, bias=False)
        torch.nn.init.zeros_(self.down.weight)
        self.of_first = _near_identity(torch.nn.Linear(width, width))
        self.of_later = _near_identity(torch.nn.Linear(2 * width, width))

    def step(self, place: int, carry: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        token = self.output[tokens]
        if place == 0:
            state = self.first(carry, token)
            normed = self.augment_norm(state)
            state = state + self.down(silu(self.gate(normed)) * self.up(normed))
            return self.of_first(state), state
        state = self.later(carry, token)
        return self.of_later(torch.cat((state, token), dim=1)), state

    def words(self, place: int, out: torch.Tensor) -> torch.Tensor:
        return out @ self.output.T

    def loss(self, place: int, out: torch.Tensor, taught: Taught) -> torch.Tensor:
        words = cross_entropy(self.words(place, out), taught.logits.softmax(-1))
        return FADING**place * (OF_WORDS * words + smooth_l1_loss(out, taught.states))


def _pair(width: int) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    return torch.nn.Linear(width, 4 * width, bias=False), torch.nn.Linear(width, 4 * width, bias=False)
