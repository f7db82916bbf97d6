"""Evictions that note, when a token comes, what the tokens of its chunk look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive
from headwise.methods.evict import Evict
from headwise.methods.outliers import noted, plain_noted


@dataclass(frozen=True)
class AmongNeighbours(Evict):
    """The tokens of a chunk attend to all of it, before and after; what each of them gets is noted once.

    size: tokens of a chunk, counted from the last sink.
    """

    size: Positive = 256

    notes = 1

    @property
    def last_queries(self) -> int:
        """Those of a chunk, and of all tokens since the last eviction."""
        return max(self.size, 64)

    def note(self, view: View) -> torch.Tensor:
        """What each new token gets [h, n, 1]."""
        return noted(view, self.size, self.sinks)

    def plain_note(self, view: View) -> torch.Tensor:
        """What `note` says, one query and one token at a time."""
        return plain_noted(view, self.size, self.sinks)
