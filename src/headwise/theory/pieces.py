"""Pieces of the novel that ships, in bytes, for language models that experiments train."""

from __future__ import annotations

from functools import cache

import torch

from headwise.assets import novel

HELD, COUNT = 0.1, 128  # of the text, its end, which is never trained on; pieces of it that are asked about


@cache
def text() -> torch.Tensor:
    """All of it."""
    return torch.tensor(list(novel().encode()), dtype=torch.int64)


def drawn(rows: int, tokens: int, chance: torch.Generator) -> torch.Tensor:
    """Pieces [rows, tokens + 1] to train on."""
    known = text()[: int(len(text()) * (1 - HELD))]
    first = torch.randint(0, len(known) - tokens - 1, (rows, 1), generator=chance)
    return known[first + torch.arange(tokens + 1)]


def held(tokens: int) -> torch.Tensor:
    """The pieces [COUNT, tokens + 1] that are held out."""
    rest = text()[int(len(text()) * (1 - HELD)) :]
    return rest[: COUNT * (tokens + 1)].view(COUNT, -1)
