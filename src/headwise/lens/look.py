"""A look at one layer's attention over a text. What is told is exact, and no n x n matrix is made to tell it.

Everything is asked of a head's queries and keys: a probability of a pair is one product and the row's log-sum-exp; the
mean of a feature of the attended token (is it a delimiter? where does it stand?) is attention over values that are
these features, in the memory of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch.nn.functional import one_hot, pad

from headwise.attention import attend
from headwise.attention.byproducts import row_entropy
from headwise.lens.scene import Text
from headwise.observe import LayerAttention, Subject

Found = TypeVar("Found")
TILES = 48  # blocks that a text is divided into at most, as the picture of a whole pattern shows it


def tile_size(tokens: int) -> int:
    """Tokens of a tile's side, for texts of so many tokens."""
    return -(-tokens // TILES)


@dataclass(frozen=True, eq=False)
class _Usual:
    """The log-sum-exp [H, n] of each query's scores; the mean place of what it attends to, as a share of the text, the
    share of delimiters, and what it gives to tokens at all, which is 1 less what a sink gets: [H, n] each."""

    lse: torch.Tensor
    place: torch.Tensor
    delimiter: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True, eq=False)
class Look:
    """One layer's attention over a text of n tokens, as a lens may ask of it. H is the layer's query heads, in their
    order; all that is told is float32."""

    attention: LayerAttention
    text: Text

    @property
    def places(self) -> torch.Tensor:
        """The places of the queries, int64 [n]: 0, 1, 2, ..."""
        return torch.arange(self.text.tokens, device=self.attention.q.device)

    @property
    def earlier(self) -> torch.Tensor:
        """Where each token stood last before, int64 [n]; -1 for one that is new."""
        return self.text.earlier

    @property
    def first(self) -> torch.Tensor:
        """The place of the first key that each query sees, int64 [n]."""
        window = self.attention.window or self.text.tokens
        since = self.places // window * window if self.attention.chunked else self.places - window + 1
        return since.clamp(min=0)

    def to(self, keys: torch.Tensor) -> torch.Tensor:
        """The probability [H, n] that each query gives to one key, that at the place `keys [n]`; 0 for a key that it
        does not see, and for places below 0."""
        keys = keys.to(self.places)
        seen = (keys >= self.first) & (keys <= self.places)
        places = keys.clamp(min=0, max=self.text.tokens - 1)
        products = [(q[0] * k[0, places]).sum(-1) for q, k in self._pairs()]
        scores = self.attention.scoring.capped(torch.cat(products) * self.attention.scoring.scale)
        return (scores - self._usual.lse).exp().where(seen, 0.0)

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """The mean of `features [n, f]` of the tokens that each query attends to, by attention: [H, n, f]."""
        return self._read(features)[0]

    @cached_property
    def entropy(self) -> torch.Tensor:
        """Of each query's attention [H, n], in nats."""
        one = self.attention
        return torch.cat([
            row_entropy(q, k, one.where, one.scoring.of([head]))[0] for head, (q, k) in enumerate(self._pairs())
        ])  # fmt: skip

    @property
    def distance(self) -> torch.Tensor:
        """How many tokens back each query looks in the mean, [H, n], over what it looks at tokens at all."""
        return self.places - self._usual.place / self._usual.tokens * self.text.tokens

    @property
    def on_delimiters(self) -> torch.Tensor:
        """The share of each query's attention on delimiters, [H, n]."""
        return self._usual.delimiter

    @property
    def tiles(self) -> torch.Tensor:
        """The pattern in at most TILES x TILES tiles [H, m, m]: the share of its attention that a query of a tile's
        rows gives to the tokens of its columns, in the mean. Rows sum to 1, less what a sink gets."""
        size = tile_size(self.text.tokens)
        tiles = self.mean(one_hot(self.places // size))
        rows = [block.mean(1) for block in tiles.split(size, dim=1)]
        return torch.stack(rows, dim=1)

    @property
    def lse(self) -> torch.Tensor:
        """The log-sum-exp [H, n] of each query's scores."""
        return self._usual.lse

    @cached_property
    def _usual(self) -> _Usual:
        """What many lenses ask for, found by one attention."""
        place, delimiter = self.places / self.text.tokens, self.text.delimiters.to(self.places.device)
        means, lse = self._read(torch.stack((place, delimiter, torch.ones_like(place)), dim=1))
        place, delimiter, tokens = means.unbind(-1)
        return _Usual(lse, place, delimiter, tokens.clamp(min=torch.finfo(tokens.dtype).tiny))

    def _read(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention's mean [H, n, f] of `features [n, f]`, and the log-sum-exp [H, n]. Features are read as many at
        once as a key has channels, as fused kernels ask."""
        width, where, scoring = self.attention.k.shape[3], self.attention.where, self.attention.scoring
        means, lses = [], []
        for head, (q, k) in enumerate(self._pairs()):
            parts = []
            for part in features.float().split(width, dim=1):
                found = attend(q, k, pad(part, (0, width - part.shape[1]))[None], where, scoring.of([head]))
                parts.append(found.out[0, ..., : part.shape[1]].clone())  # lets go of the others
            means.append(torch.cat(parts, dim=-1))
            lses.append(found.lse[0])
        return torch.cat(means), torch.cat(lses)

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The queries [1, g, n, d] and keys [1, n, d] of one KV head after the other, in float32: for the memory."""
        q, k = self.attention.q[0].detach(), self.attention.k[0].detach()
        for own, key in zip(q.unflatten(0, (len(k), -1)).split(1), k.split(1), strict=True):
            yield own.float(), key.float()


def looked_at(subject: Subject, text: Text, of: Callable[[Look], Found]) -> dict[int, Found]:
    """What `of` makes of the look at a text of each layer that attends, by its number, in one forward whose result is
    what it is without a look."""
    found: dict[int, Found] = {}

    def attention(one: LayerAttention) -> torch.Tensor:
        found[one.layer] = of(Look(one, text))
        return one.full()

    with torch.no_grad():
        subject.hidden(text.ids.to(subject.device), torch.tensor([text.tokens - 1]), attention)
    return found
