"""S2-Attention's shards: which tokens a head may read at all, by their positions and the head's number."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View


@dataclass(frozen=True)
class Shards:
    """The local blocks of `size` tokens, and of those before them the ones whose number a head's own shift makes a
    multiple of `stride` (S2-Attention, 2407.17678)."""

    stride: int
    local: int
    step: int
    size: int

    def reads(self, view: View, query: int) -> torch.Tensor:
        """Bool [h, n]: the stored tokens that the query at position `query` reads."""
        block = view.positions.long() // self.size
        shift = torch.tensor(view.heads, device=block.device)[:, None] * self.step
        return (block > query // self.size - self.local) | ((block + shift) % self.stride == 0)

    def plain_reads(self, view: View, query: int) -> list[list[bool]]:
        """The same, token by token."""
        first = (query // self.size - self.local + 1) * self.size
        return [
            [place >= first or (place // self.size + head * self.step) % self.stride == 0 for place in places]
            for head, places in zip(view.heads, view.positions.tolist(), strict=True)
        ]

    def most(self, query: int) -> int:
        """Tokens that any head reads at most for the query at position `query`, all those before it."""
        distant = max(0, query // self.size - self.local + 1)
        return min(query, query - distant * self.size + -(-distant // self.stride) * self.size)
