"""What is kept of the newest queries: a value that grows behind its end, so that a step writes its own and copies no
others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROOM = 4  # tokens that are written in place before all are copied anew


@dataclass(frozen=True)
class Recent:
    """The tokens [start, end) of a buffer [h, g, room, ...]. One of two values over a buffer may be added to: the older
    one once the newer one is forgotten, or the newer one; `copy` makes a buffer of its own."""

    buffer: torch.Tensor
    start: int
    end: int

    @classmethod
    def of(cls, tokens: torch.Tensor) -> Recent:
        """The tokens of [h, g, t, ...], copied."""
        return cls(tokens.clone(memory_format=torch.contiguous_format), 0, tokens.shape[2])

    @property
    def all(self) -> torch.Tensor:
        """The tokens [h, g, t, ...], which the next ones do not change."""
        return self.buffer[:, :, self.start : self.end]

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.buffer.nbytes

    def add(self, new: torch.Tensor, most: int | None = None) -> Recent:
        """With the tokens of `new [h, g, t, ...]` after these; of all of them the last `most`, where given."""
        end = self.end + new.shape[2]
        start = self.start if most is None else max(self.start, end - most)
        frozen = self.buffer.is_inference() and not torch.is_inference_mode_enabled()
        if end <= self.buffer.shape[2] and not frozen:
            self.buffer[:, :, self.end : end] = new
            return Recent(self.buffer, start, end)
        kept, fresh = self.buffer[:, :, min(start, self.end) : self.end], new[:, :, max(0, start - self.end) :]
        count = end - start
        room = ROOM if new.shape[2] <= ROOM else 0  # a piece of prompt is not followed by one token after the other
        buffer = new.new_empty(*new.shape[:2], count + room, *new.shape[3:])
        buffer[:, :, : kept.shape[2]], buffer[:, :, kept.shape[2] : count] = kept, fresh
        return Recent(buffer, 0, count)

    def without_last(self, gone: int) -> Recent:
        """A copy without the last `gone` tokens."""
        return Recent.of(self.buffer[:, :, self.start : max(self.start, self.end - gone)])

    def copy(self) -> Recent:
        """The same over a buffer of its own."""
        return Recent(self.buffer.clone(), self.start, self.end)
