"""What conversions read: windows of a book, one half of it to calibrate and distil on, the other to be judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.bench.job import encode
from headwise.errors import ContextError
from headwise.tasks.base import Split
from headwise.tasks.haystack import book

AT_ONCE = 16  # windows that are read in one forward


@dataclass(frozen=True, eq=False)
class Book:
    """Ids [n] of a half of a book."""

    ids: Tensor

    @classmethod
    def of(cls, tokenizer: Any, split: Split, path: str = "") -> Book:
        """The half that a split may read, of the shipped novel or of a user's own text file."""
        return cls(encode(tokenizer, book(split, path))[0])

    def evenly(self, count: int, tokens: int) -> Tensor:
        """`count` windows [count, tokens] that begin at even distances, and none of which is in another."""
        apart = (len(self.ids) - tokens) // max(1, count - 1)
        if apart < tokens:
            raise ContextError(
                f"a text of {len(self.ids)} tokens has no {count} windows of {tokens} tokens beside one another; give "
                "fewer or shorter ones, or a longer text"
            )
        return torch.stack([self.ids[start : start + tokens] for start in range(0, count * apart, apart)])

    def drawn(self, count: int, tokens: int, seed: int) -> Tensor:
        """`count` windows [count, tokens] from anywhere, the same for the same seed."""
        if len(self.ids) <= tokens:
            raise ContextError(f"a text of {len(self.ids)} tokens has no window of {tokens}; give a longer text")
        made = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.ids) - tokens, (count,), generator=made).tolist()
        return torch.stack([self.ids[start : start + tokens] for start in starts])


@torch.no_grad()
def losses(model: Any, windows: Tensor) -> list[float]:
    """Mean nats of a token, by window of `windows [count, tokens]`, where each is read from its beginning."""
    found = []
    for ids in windows.split(AT_ONCE):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        told = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found += told.mean(1).tolist()
    return found


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """The mean over tokens of KL(teacher | student), in nats, by text [batch]; both [batch, tokens, vocabulary]."""
    said = teacher.float().log_softmax(-1)
    return F.kl_div(logits.float().log_softmax(-1), said, reduction="none", log_target=True).sum(-1).mean(-1)
