"""Texts of facts among noise, and questions after one of them, for trials of what a model remembers."""

from __future__ import annotations

import torch
from torch import nn

KEYS, VALUES, NOISE = 32, 8, 16  # a fact is one token, of a key and its value; tokens of noise tell nothing
FIRST_NOISE, FIRST_QUESTION = KEYS * VALUES, KEYS * VALUES + NOISE


class Facts(nn.Module):
    """What such tokens are embedded as."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(KEYS, width), nn.Embedding(VALUES, width)
        self.others = nn.Embedding(NOISE + 1, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The inputs of ids [rows, tokens]: a fact's are those of its key and of its value, a question's of its key."""
        key, value = torch.arange(FIRST_NOISE) // VALUES, torch.arange(FIRST_NOISE) % VALUES
        facts, noise = self.keys(key) + self.values(value), self.others.weight
        return torch.cat([facts, noise[:NOISE], self.keys.weight + noise[NOISE:]])[ids]


def told(
    rows: int, tokens: int, facts: int, chance: torch.Generator, common: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts [rows, tokens] of noise and of so many facts of different keys at places by chance; and the value of every
    key [rows, keys], of those that are told as of others. common: how often each key is told, [keys]; alike where
    None."""
    ids = torch.randint(FIRST_NOISE, FIRST_QUESTION, (rows, tokens), generator=chance)
    values = torch.randint(VALUES, (rows, KEYS), generator=chance)
    if common is None:
        keys = torch.rand(rows, KEYS, generator=chance).argsort(1)[:, :facts]
    else:
        keys = torch.multinomial(common.expand(rows, -1), facts, generator=chance)
    places = torch.rand(rows, tokens, generator=chance).argsort(1)[:, :facts]
    return ids.scatter(1, places, keys * VALUES + values.gather(1, keys)), values


def asked(ids: torch.Tensor, values: torch.Tensor, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A question [rows, 1] after one of the facts in each text, and the value that answers it [rows]."""
    lots = torch.rand(ids.shape, generator=chance).masked_fill(ids >= FIRST_NOISE, -1)
    key = ids.gather(1, lots.argmax(1, keepdim=True)) // VALUES
    return FIRST_QUESTION + key, values.gather(1, key)[:, 0]


def noise(rows: int, tokens: int, chance: torch.Generator) -> torch.Tensor:
    """Texts [rows, tokens] that tell nothing."""
    return torch.randint(FIRST_NOISE, FIRST_QUESTION, (rows, tokens), generator=chance)


def right(logits: torch.Tensor, answer: torch.Tensor) -> float:
    """The share of answers that are right."""
    return float((logits.argmax(-1) == answer).float().mean())
