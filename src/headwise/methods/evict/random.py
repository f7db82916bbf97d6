"""Random eviction: the floor that an informed method must stand above at equal memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.evict import Evict
from headwise.registry import Card, register

WORD = 0xFFFFFFFF


def scramble(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words (in int64) whose output bits look independent of the input's."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


@register("evict", "random")
@dataclass(frozen=True)
class Random(Evict):
    """Scores every token by a hash of (seed, layer, KV head, position), uniform in [0, 1).

    A hash and not a generator: a token's score is the same whenever it is asked for, so a prompt in chunks, a batch
    and a resumed session keep the tokens that one pass keeps. Heads draw independently of each other.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept. skip_layers: first
    layers left whole, for the control of methods that leave them whole.
    """

    skip_layers: NonNegative = 0

    card = Card(
        title="Random eviction (control)",
        paper="none: the control of every eviction study",
        frees_memory=True,
        chunking="exact",
        forgets="tokens drawn at random between the sinks and the recent window",
    )

    def governs(self, layer: int) -> bool:
        """All layers but the first `skip_layers`."""
        return layer >= self.skip_layers

    def score(self, view: View) -> torch.Tensor:
        """Uniform numbers [h, n] in [0, 1)."""
        heads = torch.as_tensor(view.heads, device=view.positions.device)
        word = torch.zeros_like(heads)
        for part in (view.seed, view.layer):
            word = scramble((word + part) & WORD)
        word = scramble((word + heads) & WORD)
        word = scramble((word[:, None] + view.positions.long()) & WORD)
        return word.double() / (WORD + 1)

    def plain(self, view: View) -> torch.Tensor:
        """The same hash on Python's integers, one token at a time."""
        rows = []
        for head, positions in zip(view.heads, view.positions.tolist(), strict=True):
            rows.append([_plain_hash((view.seed, view.layer, int(head), p)) / 2**32 for p in positions])
        return torch.tensor(rows, dtype=torch.float64)


def _plain_hash(parts: tuple[int, ...]) -> int:
    word = 0
    for part in parts:
        word = (word + part) % 2**32
        word = (word ^ word >> 16) * 0x7FEB352D % 2**32
        word = (word ^ word >> 15) * 0x846CA68B % 2**32
        word ^= word >> 16
    return word
