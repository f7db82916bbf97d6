"""What is changed of scores on their way to weights: the answer of a steering method for one call of attention."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError

Kind = TypeVar("Kind", bound="Edit")


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A change of the scores of some query heads. heads: bool `[h, g]`, those that are steered.

    Every other tensor of an edit begins with h as well, so that `of` gives that of some KV heads.
    """

    heads: Tensor

    @abstractmethod
    def change(self, s: Tensor, visible: Tensor) -> Tensor:
        """New scores `[h, g, rows, m]` in the place of `s`, those of the first m keys before masking; `visible
        [h or 1, rows, m]` shows which of them count. Their softmax gives the weights, so that rows sum to 1."""

    def __call__(self, s: Tensor, visible: Tensor) -> Tensor:
        """`change` for the heads that are steered, the same scores for the others."""
        return torch.where(self.heads[:, :, None, None], self.change(s, visible), s)

    def of(self: Kind, heads: Sequence[int]) -> Kind:
        """The edit of these KV heads, in this order."""
        index = torch.tensor([*heads], device=self.heads.device)
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: x[index] for name, x in own.items() if isinstance(x, Tensor)})

    def check(self, q: Tensor) -> None:
        """Raise ShapeError unless the edit is of the query heads of `q [h, g, t, d]`."""
        if self.heads.shape != q.shape[:2] or self.heads.dtype != torch.bool:
            raise ShapeError(
                f"an edit of heads {list(self.heads.shape)} {self.heads.dtype} is not one of queries {list(q.shape)}: "
                "one bool for each query head, [h, g]"
            )


@dataclass(frozen=True, eq=False)
class Raised(Edit):
    """The scores of some keys, all by one number above 0: their weights count exp(by) times.

    keys: bool `[h, n]`. Such an edit needs no other kernel: it is the same attention with the raised keys added once
    more, which count exp(by) - 1 times.
    """

    keys: Tensor
    by: float

    def __post_init__(self) -> None:
        if not 0 < self.by < math.inf:
            raise HeadwiseError(f"Raised(by={self.by}): scores are raised by more than 0, and finitely")

    def change(self, s: Tensor, visible: Tensor) -> Tensor:
        return s + self.by * self.keys[:, None, None, : s.shape[-1]].to(s)


def moved(s: Tensor, visible: Tensor, taken: Tensor, given: Tensor, keep: float) -> Tensor:
    """Scores `[h, g, rows, m]` whose softmax leaves the `taken` keys `keep` times their weight and gives the rest of it
    to the `given` ones, in proportion to the weights that these have. 0 <= keep <= 1.

    taken, given: bool `[h, g or 1, rows or 1, m]`, never both. Rows in which one of the two has no visible key stay as
    they are. All is summed as log-sum-exps, so that no small weight is lost in a difference of large ones.
    """
    lost, won = (
        s.masked_fill(~(visible[:, None] & keys), -torch.inf).logsumexp(-1, keepdim=True) for keys in (taken, given)
    )
    left, passed = torch.tensor((keep, 1 - keep), dtype=s.dtype, device=s.device).log()
    more = torch.logaddexp(won, lost + passed) - won
    shift = torch.where(taken, left, torch.where(given, more, torch.zeros_like(more)))
    return torch.where(lost.isfinite() & won.isfinite(), s + shift, s)
