"""Evictions that score a prompt's tokens when the model reads it again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive
from headwise.methods.evict import Evict

LEAST = 1e-30  # score of a token that nothing attends to; 0 is that of one without a score
MOST = 2.0  # above every score


@dataclass(frozen=True)
class Reread(Evict):
    """Scores come of `rehearse` and lie in the notes, LEAST to MOST.

    piece: tokens that are read again at once.
    """

    piece: Positive = 2048

    notes = 1
    needs = frozenset({"keys", "queries", "notes"})

    def score(self, view: View) -> torch.Tensor:
        """What was noted [h, n]; a token without a score is worth more than any with one, the later the more."""
        score = view.notes[..., 0]
        return torch.where(score > 0, score, MOST + 1 + view.positions)

    def plain(self, view: View) -> torch.Tensor:
        """The same, entry by entry."""
        rows = zip(view.notes.tolist(), view.positions.tolist(), strict=True)
        return torch.tensor(
            [[note[0] if note[0] > 0 else MOST + 1 + at for note, at in zip(*row, strict=True)] for row in rows]
        )
