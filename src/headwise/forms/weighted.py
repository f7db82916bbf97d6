"""Chosen tokens that count for more or less than one: what a sample of the keys needs to stand for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import ShapeError
from headwise.forms.listed import Tokens
from headwise.forms.lowered import Indices, Lowered
from headwise.forms.where import Where


@dataclass(frozen=True, eq=False)
class Weighted(Where):
    """`tokens`, and for each head a `bias` that is added to the scaled scores: log of how often a key counts.

    bias: per head float [g, t, m] over its m tokens, or [1, 1, m] for all queries alike; -inf hides a token from one.
    A key drawn with probability p counts 1 / p times: a bias of -log p.
    """

    tokens: Tokens
    bias: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        sizes = [one.shape[0] for one in self.tokens.indices]
        if [one.shape[-1] for one in self.bias] != sizes or any(one.dim() != 3 for one in self.bias):
            raise ShapeError(
                f"Weighted needs a bias [g, t, m] per head over its m = {sizes} tokens, got "
                f"{[list(one.shape) for one in self.bias]}"
            )

    @property
    def heads(self) -> int:
        return self.tokens.heads

    @property
    def lowered(self) -> Lowered:
        return Indices(self.tokens.indices, self.tokens.table, self.bias)

    def check(self, t: int, n: int) -> None:
        self.tokens.check(t, n)

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        return self.tokens.rows(start, stop, t, n, device)

    def visible_pairs(self, t: int, n: int) -> float:
        return self.tokens.visible_pairs(t, n)
