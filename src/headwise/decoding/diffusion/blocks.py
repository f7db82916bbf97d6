"""Where a block of an answer ends: after so many tokens, or where a line does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from headwise.knobs import Knobs, Positive, Share


class Blocks(Knobs, ABC):
    """How an answer is cut into blocks. size: tokens of a block, unless something else is seen to be better."""

    size: int

    @abstractmethod
    def tokens(self, words: torch.Tensor, confidence: torch.Tensor) -> int:
        """How many tokens the next block has, by the first look at its window: words [t], the likeliest token of each
        place, of which it is so sure, confidence [t]."""


@dataclass(frozen=True)
class Fixed(Blocks):
    """Blocks of `size` tokens (LLaDA, arXiv 2502.09992, section 2.4)."""

    size: Positive = 8

    def tokens(self, words: torch.Tensor, confidence: torch.Tensor) -> int:
        return min(self.size, len(words))


@dataclass(frozen=True)
class Adaptive(Blocks):
    """Blocks that end where a line does (AdaBlock-dLLM, arXiv 2509.26432, algorithm 1): with the surest delimiter that
    is seen in the window, where the look is at least as sure of it as `sure`; else after `size` tokens.

    delimiter: the id of the token that ends a line.
    """

    delimiter: int
    size: Positive = 8
    sure: Share = 0.3

    def tokens(self, words: torch.Tensor, confidence: torch.Tensor) -> int:
        found = confidence.masked_fill(words != self.delimiter, -1.0)
        place = int(found.argmax())
        return place + 1 if float(found[place]) >= self.sure else min(self.size, len(words))
