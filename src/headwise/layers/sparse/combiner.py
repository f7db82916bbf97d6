"""Full attention by regions: near tokens are read directly, far ones through what stands for their region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.patterns import Field, Lone, Pattern
from headwise.layers.regions import region_softmax, regions

LEAST = float("-inf")


@layer_part("pattern", "combiner")
@dataclass(frozen=True)
class Combiner(Pattern):
    """A softmax over the tokens of the query's own region and one key for each region before it; the weight of a
    region is shared out among its tokens as that key alone says, whatever the query.

    region: tokens; the paper takes the square root of the text's length.
    """

    region: Positive = 32
    softmax_only: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Combiner",
        "Combiner, 2107.05768, section 4.1, its fixed form",
        "every token is read, far ones through one key for each region",
        "w_ij = p_i(r) softmax over r of m_r . k_j / sqrt(d), m_r = max of k over region r; p_i a softmax over the "
        "query's own region and q_i . m_r / sqrt(d) of those before it",
        systems=(51,),
        equals=(Limit("a region as long as the text: plain attention", "heads", of="combiner(64)"),),
        deviations="the fixed form alone of its three; a region's tokens are weighed by its pooled key, where the "
        "paper pools queries for that; weights are computed pair by pair, so that no time is saved",
    )

    def seen(self, field: Field) -> Tensor:
        return field.block.seen

    def reads(self, lone: Lone) -> Sequence[int]:
        return range(lone.place + 1)

    def weights(self, field: Field) -> Tensor:
        block, seen = field.block, field.block.seen
        near = seen & (field.places // self.region == field.asks // self.region)
        region = regions(field.places % self.region == 0)
        there = region[:, :, 0, :, None].expand_as(block.k)
        pooled = torch.full_like(block.k, LEAST).scatter_reduce(2, there, block.k, "amax")
        pooled = pooled.gather(2, there)  # of each key's region, [batch, heads, keys, dim]
        inner = (pooled * block.k).sum(-1)[:, :, None] * block.scale
        far = (block.q @ pooled.transpose(-1, -2)) * block.scale
        starts = seen & ~near & (field.places % self.region == 0)  # one key for each region
        both = torch.where(near, field.score(block), far).masked_fill(~(near | starts), LEAST)
        first = both.softmax(-1)
        spread = region.expand_as(first)
        carried = torch.zeros_like(first).scatter_add(-1, spread, first * starts).gather(-1, spread)
        return first * near + carried * region_softmax(inner.expand_as(first), spread, seen & ~near)

    def alone(self, lone: Lone) -> Tensor:
        row, start = lone.row, lone.place // self.region * self.region
        far = [list(range(first, first + self.region)) for first in range(0, start, self.region)]
        pooled = [row.k[places].max(0).values for places in far]
        own = list(range(start, lone.place + 1))
        asked = [(row.q @ key * row.scale)[None] for key in pooled]
        first = torch.cat((*asked, lone.scores(own))).softmax(0)
        weights = row.k.new_zeros(lone.place + 1).index_put((torch.tensor(own),), first[len(far) :])
        for share, places, key in zip(first, far, pooled, strict=False):
            inner = (row.k[places] @ key * row.scale).softmax(0)
            weights = weights.index_add(0, torch.tensor(places), share * inner)
        return weights
