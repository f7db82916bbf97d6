"""Blocks of queries and keys: what prefill patterns that choose block by block share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headwise.choose import choose_mask
from headwise.forms import Blocks


@dataclass(frozen=True)
class Grid:
    """Blocks of `size` tokens as `Blocks` counts them: query blocks over the last t of n tokens, key blocks over all n.

    starts, ends: storage index of the first and last query of each query block, int64 [query blocks].
    """

    size: int
    stored: int
    starts: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, size: int, queries: int, stored: int, device: torch.device) -> Grid:
        """The grid of the last `queries` of `stored` tokens."""
        starts = torch.arange(stored - queries, stored, size, device=device)
        return cls(size, stored, starts, (starts + size - 1).clamp(max=stored - 1))

    @property
    def keys(self) -> torch.Tensor:
        """Storage index of the first key of each key block, int64 [key blocks]."""
        return torch.arange(0, self.stored, self.size, device=self.starts.device)

    @property
    def past(self) -> torch.Tensor:
        """Key blocks that begin no later than a query block ends: bool [query blocks, key blocks]."""
        return self.keys <= self.ends[:, None]

    def near(self, before: int = 0) -> torch.Tensor:
        """Key blocks that hold a query block's own tokens, and the `before` blocks before them: [query, key blocks]."""
        return self.past & (self.keys // self.size >= self.starts[:, None] // self.size - before)

    def forced(self) -> torch.Tensor:
        """What every pattern of chosen blocks reads: a query block's own tokens and the first block."""
        return self.near() | (self.keys == 0)

    def best(self, scores: torch.Tensor, counts: int | torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
        """The `counts` best past key blocks of each query block, `forced` ones included.

        counts: one, [query blocks] or [h, query blocks]. scores [h, query blocks, key blocks]; forced [query blocks,
        key blocks] or with h before. Bool like scores.
        """
        past = self.past
        wanted = torch.as_tensor(counts, device=scores.device).expand(scores.shape[:2])
        chosen = torch.stack(  # head by head, as choosing takes several times the memory of the scores
            [
                choose_mask(one.masked_fill(~past, -torch.inf), count, must & past)
                for one, count, must in zip(scores, wanted, forced.expand_as(scores), strict=True)
            ]
        )
        return chosen & past

    def blocks(self, map: torch.Tensor) -> Blocks:
        """The form of a bool map [h, query blocks, key blocks]; what lies in the future is left out."""
        return Blocks.from_map(self.size, map & self.past)


def group_sums(x: torch.Tensor, size: int) -> torch.Tensor:
    """Sums [..., blocks] of blocks of `size` entries of x [..., n]; the last block may be short."""
    return pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


def block_means(x: torch.Tensor, size: int) -> torch.Tensor:
    """Means [h, blocks, d] of blocks of `size` entries of x [h, n, d]; the last block may be short."""
    counts = group_sums(torch.ones(x.shape[1], device=x.device), size)
    return group_sums(x.mT, size).mT / counts[:, None]


def group_peaks(x: torch.Tensor, size: int) -> torch.Tensor:
    """Largest entry [h, blocks, d] of each channel of x [h, n, d] in blocks of `size` tokens."""
    return pad(x, (0, 0, 0, -x.shape[1] % size), value=-torch.inf).unflatten(1, (-1, size)).amax(2)
