"""What a method lets the model read again, once a prompt is read and before anything of it is evicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CUE = 8  # last tokens of a piece that come again before the next one, so that the model knows where it is


@dataclass(frozen=True)
class Rehearsal:
    """The prompt again, `piece` tokens at a time, each piece as a continuation of the whole prompt.

    ask: token ids before the first piece. resume: those before every other one, after which come the CUE last tokens of
    the piece before it. then: token ids right before each piece.
    """

    piece: int
    ask: tuple[int, ...] = ()
    resume: tuple[int, ...] = ()
    then: tuple[int, ...] = ()

    def passages(self, ids: torch.Tensor) -> list[tuple[torch.Tensor, range]]:
        """For each piece of the prompt's ids [m], what is read and which of the m tokens the last of it are."""
        read = []
        for start in range(0, len(ids), self.piece):
            piece = ids[start : start + self.piece]
            cue = ids[max(0, start - CUE) : start]
            before = ids.new_tensor([*(self.resume if start else self.ask)])
            read.append((torch.cat((before, cue, ids.new_tensor(self.then), piece)), range(start, start + len(piece))))
        return read

    def longest(self, tokens: int) -> int:
        """Most tokens that are read at once of a prompt of so many."""
        first = len(self.ask) + min(self.piece, tokens)
        return len(self.then) + (first if tokens <= self.piece else max(first, len(self.resume) + CUE + self.piece))
