"""A look at one layer's attention in a host that is no decoder: both ways, from a text to another, or over a picture.

A block of queries is held at a time, so that no matrix of queries by keys is made; what is told does not depend on how
large a block is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from headwise.errors import HeadwiseError
from headwise.lens.look import tile_size
from headwise.observe.host import HostAttention

AT_ONCE = 1 << 22  # probabilities that are held at once
EXACT = "donot_use_mm_for_euclid_dist"  # distances that are exact to rounding


@dataclass(frozen=True, eq=False)
class Reading:
    """What a host reads under one name: `shown`, as the host takes it, [1, ...].

    delimiters: of a text, which tokens delimit, bool [n]; None for what is none. places: where each token stands,
    [n, 1] in a text, [n, 2] in a picture, not a number for one that stands nowhere, as a picture's class token does.
    """

    shown: torch.Tensor
    delimiters: torch.Tensor | None
    places: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many the host's layers see."""
        return len(self.places)

    @cached_property
    def earlier(self) -> torch.Tensor:
        """Where each token of a text stood last before, int64 [n]; -1 for one that is new."""
        last: dict[int, int] = {}
        found = []
        for place, token in enumerate(self.shown[0].tolist()):
            found.append(last.get(token, -1))
            last[token] = place
        return torch.tensor(found)


def text(ids: torch.Tensor, delimiters: torch.Tensor | None = None) -> Reading:
    """Tokens `ids [1, n]` to read, of which some delimit, bool [n]; none by default."""
    if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] < 2:
        raise HeadwiseError(f"a text is ids [1, n] of 2 tokens or more, got {list(ids.shape)}")
    given = torch.zeros(ids.shape[1], dtype=torch.bool) if delimiters is None else delimiters
    if given.shape != ids.shape[1:]:
        raise HeadwiseError(f"delimiters are bool [{ids.shape[1]}], one for each token, got {list(given.shape)}")
    return Reading(ids, given, torch.arange(float(ids.shape[1]))[:, None])


def picture(pixels: torch.Tensor, grid: tuple[int, int], tokens: int) -> Reading:
    """Pixels [1, channels, height, width] to read, cut into a grid of patches, before which other tokens stand."""
    before = tokens - grid[0] * grid[1]
    if before < 0:
        raise HeadwiseError(
            f"{tokens} tokens are no grid of {grid[0]} x {grid[1]} patches; give an image encoder of one"
        )
    rows, columns = torch.meshgrid(torch.arange(float(grid[0])), torch.arange(float(grid[1])), indexing="ij")
    patches = torch.stack((rows, columns), dim=-1).flatten(0, 1)
    return Reading(pixels, None, torch.cat((torch.full((before, 2), torch.nan), patches)))


def frames(features: torch.Tensor, tokens: int) -> Reading:
    """What is no text and no picture, such as sound, of which a host makes tokens in a row."""
    return Reading(features, None, torch.arange(float(tokens))[:, None])


@dataclass(frozen=True, eq=False)
class _Told:
    """What one pass over all queries tells: [H, m] each, and tiles [H, r, c]."""

    lse: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor
    delimiters: torch.Tensor
    tiles: torch.Tensor


@dataclass(frozen=True, eq=False)
class HostLook:
    """One layer's attention in a host, as a lens may ask of it: a `Sight`. at_once: probabilities that are held."""

    attention: HostAttention
    queries: Reading
    keys: Reading
    at_once: int = AT_ONCE

    @property
    def places(self) -> torch.Tensor:
        return torch.arange(self.attention.q.shape[1], device=self.attention.q.device)

    @property
    def earlier(self) -> torch.Tensor:
        return self.queries.earlier

    @property
    def entropy(self) -> torch.Tensor:
        return self._told.entropy

    @property
    def distance(self) -> torch.Tensor:
        return self._told.distance

    @property
    def on_delimiters(self) -> torch.Tensor:
        return self._told.delimiters

    @property
    def tiles(self) -> torch.Tensor:
        """The pattern in tiles [H, r, c]: the share of its attention that a query of a tile's rows gives to the keys of
        its columns, in the mean."""
        return self._told.tiles

    @property
    def lse(self) -> torch.Tensor:
        """The log-sum-exp [H, m] of each query's scores."""
        return self._told.lse

    def to(self, keys: torch.Tensor) -> torch.Tensor:
        one, keys = self.attention, keys.to(self.places)
        seen = (keys >= one.first) & (keys <= one.last)
        places = keys.clamp(min=0, max=one.k.shape[1] - 1)
        group = len(one.q) // len(one.k)
        products = [(q.float() * one.k[head // group, places].float()).sum(-1) for head, q in enumerate(one.q)]
        scores = torch.stack(products) * one.scale
        if one.bias is not None:
            scores = scores + one.bias[:, places - self.places + one.q.shape[1] - 1].float()
        return (scores - self.lse).exp().where(seen, 0.0)

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """The mean of `features [n, f]` of the keys that each query attends to, by attention: [H, m, f]."""
        return torch.cat([scores.softmax(-1) @ features.to(scores) for _, scores in self._scores()], dim=1)

    def _scores(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The first query of a block, and its scores [H, b, n], minus infinity for keys that are not seen."""
        one, (m, n) = self.attention, (self.attention.q.shape[1], self.attention.k.shape[1])
        keys, group = one.k.float().mT, len(one.q) // len(one.k)
        columns = torch.arange(n, device=keys.device)
        size = max(1, self.at_once // (len(one.q) * n))
        for start in range(0, m, size):
            q = one.q[:, start : start + size].float().unflatten(0, (-1, group))
            scores = (q @ keys[:, None]).flatten(0, 1) * one.scale
            rows = self.places[start : start + size, None]
            if one.bias is not None:
                scores = scores + one.bias[:, columns - rows + m - 1].float()
            unseen = (columns < one.first[rows]) | (columns > one.last[rows])
            yield start, scores.masked_fill(unseen, -torch.inf)

    @cached_property
    def _told(self) -> _Told:
        """What lenses and pictures ask for, found in one pass over the queries."""
        places, tile = self.keys.places.to(self.places.device), tile_size(len(self.keys.places))
        there = ~places.isnan().any(-1)
        asked = self.queries.places.to(places)
        lse, entropy, far, on, tiles = [], [], [], [], []
        delimit = torch.zeros_like(there) if self.keys.delimiters is None else self.keys.delimiters.to(there.device)
        for start, scores in self._scores():
            logs = scores.log_softmax(-1)
            p = logs.exp()
            lse.append(scores.logsumexp(-1))
            entropy.append(-(p * logs.where(p > 0, 0.0)).sum(-1))
            on.append(p[..., delimit].sum(-1))
            if places.shape[1] == asked.shape[1]:
                apart = torch.cdist(asked[start : start + p.shape[1]], places[there], compute_mode=EXACT)
                placed = p[..., there]
                far.append((placed * apart).sum(-1) / placed.sum(-1).clamp(min=torch.finfo(p.dtype).tiny))
            tiles.append(torch.stack([part.sum(-1) for part in p.split(tile, dim=-1)], dim=-1))
        across = torch.cat(far, dim=1) if far else torch.full_like(torch.cat(lse, dim=1), torch.nan)
        size = tile_size(self.queries.tokens)
        rows = torch.stack([part.mean(1) for part in torch.cat(tiles, dim=1).split(size, dim=1)], dim=1)
        return _Told(torch.cat(lse, dim=1), torch.cat(entropy, dim=1), across, torch.cat(on, dim=1), rows)
