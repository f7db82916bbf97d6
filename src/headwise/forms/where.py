"""Which stored keys each query sees.

The t queries are the last t of the n tokens: query i sees key j only if j <= n - t + i. Every form but `Full` is causal
in this sense. Indices are storage indices 0..n-1, not positions. One form is one rule for all heads, or lists per head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.lowered import Lowered, Rule

BLOCK_ELEMENTS = 1 << 21  # most elements of a mask or score block made at once, so that no form ever needs n x n
MOST = 1 << 62  # tokens: with what is added to it, it fits into 64 bits


class Where(ABC):
    """Base of all forms. A subclass gives `rows`, says what it is `lowered` to if kernels know that, and may count its
    pairs in closed form."""

    @property
    def heads(self) -> int | None:
        """KV heads that the form has lists for; None when one rule serves all."""
        return None

    @property
    def causal(self) -> bool:
        """Whether a query is kept from the keys after it."""
        return True

    @property
    def lowered(self) -> Lowered:
        """What the kernels are given in its place; None where only the reference computes it, from what is drawn."""
        return None

    def check(self, t: int, n: int) -> None:
        """Raise HeadwiseError unless the form fits t queries over n keys."""
        if not 0 <= t <= n and self.causal:
            raise ShapeError(
                f"{type(self).__name__} takes the t={t} queries as the last of the n={n} tokens; "
                "store the new keys first, or use Full() for a piece of history"
            )

    @abstractmethod
    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        """Rows start..stop-1 of the t queries, drawn: bool `[h or 1, stop - start, n]`, True where visible."""

    def dense(self, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        """The whole form, drawn: bool `[h or 1, t, n]`. For tests and pictures; the mask is t x n."""
        return self.rows(0, t, t, n, device)

    def visible_pairs(self, t: int, n: int) -> float:
        """Visible (query, key) pairs, mean over heads; here by drawing blocks of rows."""
        self.check(t, n)
        step = max(1, BLOCK_ELEMENTS // max(1, n * (self.heads or 1)))
        blocks = (self.rows(start, min(start + step, t), t, n) for start in range(0, t, step))
        return sum(float(block.sum()) / block.shape[0] for block in blocks)

    def density(self, t: int, n: int) -> float:
        """Visible pairs over those of a dense call: the causal ones, or all t * n for `Full`. 1 if there are none."""
        possible = causal_pairs(t, n) if self.causal else t * n
        visible = self.visible_pairs(t, n)
        return visible / possible if possible else 1.0

    def __or__(self, other: Where) -> Union:
        return Union((self, other))


def causal_pairs(t: int, n: int) -> int:
    """Pairs that t causal queries at the end of n tokens see."""
    return t * (n - t) + t * (t + 1) // 2


def positions(start: int, stop: int, t: int, n: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """Storage index of queries start..stop-1 as a column `[rows, 1]`, and of the keys as a row `[1, n]`."""
    queries = torch.arange(n - t + start, n - t + stop, device=device)
    return queries[:, None], torch.arange(n, device=device)[None]


@dataclass(frozen=True)
class Full(Where):
    """Every query sees every key: for pieces of history, where all n keys come before all t queries."""

    @property
    def causal(self) -> bool:
        return False

    @property
    def lowered(self) -> Lowered:
        return Rule(causal=False)

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        return torch.ones(1, stop - start, n, dtype=torch.bool, device=device)

    def visible_pairs(self, t: int, n: int) -> float:
        return float(t * n)


@dataclass(frozen=True)
class Causal(Where):
    """Every query sees itself and all that came before."""

    @property
    def lowered(self) -> Lowered:
        return Rule()

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        queries, keys = positions(start, stop, t, n, device)
        return (keys <= queries)[None]

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        return float(causal_pairs(t, n))


@dataclass(frozen=True)
class Window(Where):
    """The `left` keys before each query and itself, and the first `sinks` keys (StreamingLLM, arXiv 2309.17453)."""

    left: int
    sinks: int = 0

    def __post_init__(self) -> None:
        for name, value in (("left", self.left), ("sinks", self.sinks)):
            if not isinstance(value, int) or value < 0:
                raise HeadwiseError(f"Window({name}={value}): {name} counts tokens; give a whole number of 0 or more")
            object.__setattr__(self, name, min(value, MOST))  # more than any sequence has means all

    @property
    def lowered(self) -> Lowered:
        return Rule(True, self.left, self.sinks)

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        queries, keys = positions(start, stop, t, n, device)
        near = (queries - keys <= self.left) | (keys < self.sinks)
        return (near & (keys <= queries))[None]

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        queries = torch.arange(n - t, n)
        near = (queries + 1).clamp(max=self.left + 1)
        return float((near + (queries - self.left).clamp(min=0, max=self.sinks)).sum())


@dataclass(frozen=True, eq=False)
class Until(Where):
    """Per head, each key is seen up to the query with storage index `last [h, n]`, itself included (int64)."""

    last: Tensor

    def __post_init__(self) -> None:
        if self.last.dim() != 2 or self.last.dtype != torch.int64:
            raise ShapeError(f"Until takes int64 [h, n], got {self.last.dtype} {list(self.last.shape)}")

    @property
    def heads(self) -> int:
        return self.last.shape[0]

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        if self.last.shape[1] != n:
            raise ShapeError(f"Until tells of {self.last.shape[1]} keys, but there are {n}; give one number for each")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.last.device
        queries, keys = positions(start, stop, t, n, device)
        return (queries <= self.last.to(device)[:, None]) & (keys <= queries)


@dataclass(frozen=True, eq=False)
class Union(Where):
    """A pair is visible if any part shows it. `a | b` builds one."""

    parts: tuple[Where, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise HeadwiseError("Union() of nothing shows nothing; give it at least one form")
        flat = [p for part in self.parts for p in (part.parts if isinstance(part, Union) else (part,))]
        counts = sorted({part.heads for part in flat if part.heads is not None})
        if len(counts) > 1:
            raise ShapeError(f"Union: its parts have lists for different numbers of heads: {counts}")
        object.__setattr__(self, "parts", tuple(flat))

    @property
    def heads(self) -> int | None:
        return next((part.heads for part in self.parts if part.heads is not None), None)

    @property
    def causal(self) -> bool:
        return all(part.causal for part in self.parts)

    def check(self, t: int, n: int) -> None:
        for part in self.parts:
            part.check(t, n)

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        drawn = [part.rows(start, stop, t, n, device) for part in self.parts]
        seen = drawn[0]
        for other in drawn[1:]:
            seen = seen | other
        return seen
