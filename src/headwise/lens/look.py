"""A look at one layer's attention over a text. What is told is exact, and no n x n matrix is made to tell it.

Everything is asked of a head's queries and keys: a probability of a pair is one product and the row's log-sum-exp; the
mean of a feature of the attended token (is it a delimiter? where does it stand?) is attention over values that are
these features, in the memory of attention.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """The log-sum-exp [h, g, n] of each query's scores; the mean place of what it attends to, as a share of the text,
    and the share of delimiters [H, n]; and what it gives to each tile [H, n, m]."""

    lse: torch.Tensor
    place: torch.Tensor
    delimiter: torch.Tensor
    tile: torch.Tensor


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
        product = (self._queries * self._keys[:, None, keys.clamp(min=0, max=self.text.tokens - 1)]).sum(-1)
        scores = self.attention.scoring.capped(product * self.attention.scoring.scale)
        return (scores - self._usual.lse).exp().where(seen, 0.0).flatten(0, 1)

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """The mean of `features [n, f]` of the tokens that each query attends to, by attention: [H, n, f]."""
        return self._read(features)[0].flatten(0, 1)

    @cached_property
    def entropy(self) -> torch.Tensor:
        """Of each query's attention [H, n], in nats."""
        return row_entropy(self._queries, self._keys, self.attention.where, self.attention.scoring).flatten(0, 1)

    @property
    def distance(self) -> torch.Tensor:
        """How many tokens back each query looks in the mean, [H, n], over what it looks at tokens at all."""
        return self.places - self._usual.place * self.text.tokens

    @property
    def on_delimiters(self) -> torch.Tensor:
        """The share of each query's attention on delimiters, [H, n]."""
        return self._usual.delimiter

    @property
    def tiles(self) -> torch.Tensor:
        """The pattern in at most TILES x TILES tiles [H, m, m]: the share of its attention that a query of a tile's
        rows gives to the tokens of its columns, in the mean. Rows sum to 1, less what a sink gets."""
        rows = [block.mean(1) for block in self._usual.tile.split(tile_size(self.text.tokens), dim=1)]
        return torch.stack(rows, dim=1)

    @property
    def lse(self) -> torch.Tensor:
        """The log-sum-exp [H, n] of each query's scores."""
        return self._usual.lse.flatten(0, 1)

    @cached_property
    def _usual(self) -> _Usual:
        """What many lenses ask for, found by one attention."""
        tiles = one_hot(self.places // tile_size(self.text.tokens)).float()
        place, delimiter = self.places / self.text.tokens, self.text.delimiters.to(tiles)
        means, lse = self._read(torch.cat((place[:, None], delimiter[:, None], tiles), dim=1))
        place, delimiter, tiles = means.flatten(0, 1).split((1, 1, tiles.shape[1]), dim=2)
        on_tokens = tiles.sum(-1).clamp(min=torch.finfo(tiles.dtype).tiny)  # all, but for what a sink gets
        return _Usual(lse, place[..., 0] / on_tokens, delimiter[..., 0], tiles)

    def _read(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention's mean [h, g, n, f] of `features [n, f]`, and the log-sum-exp. Features are read as many at once as
        a key has channels, as fused kernels ask, and one KV head after the other, for the memory."""
        width, where = self._keys.shape[2], self.attention.where
        means, lses = [], []
        for head, (q, k) in enumerate(zip(self._queries.split(1), self._keys.split(1), strict=True)):
            scoring = self.attention.scoring.of([head])
            parts = [
                (attend(q, k, pad(part, (0, width - part.shape[1]))[None], where, scoring), part.shape[1])
                for part in features.float().split(width, dim=1)
            ]
            means.append(torch.cat([found.out[..., :count] for found, count in parts], dim=-1))
            lses.append(parts[0][0].lse)
        return torch.cat(means), torch.cat(lses)

    @cached_property
    def _queries(self) -> torch.Tensor:
        """[h, g, n, d]"""
        return self.attention.q[0].detach().float().unflatten(0, (self.attention.k.shape[1], -1))

    @cached_property
    def _keys(self) -> torch.Tensor:
        """[h, n, d]"""
        return self.attention.k[0].detach().float()


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
