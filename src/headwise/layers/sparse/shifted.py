"""Groups of tokens, shifted by half a group in some heads, and first tokens that all read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import NonNegative, Positive, Share
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.patterns import Field, Lone, Pattern, owners


@layer_part("pattern", "shifted")
@dataclass(frozen=True)
class Shifted(Pattern):
    """A query reads its group of tokens up to itself, and the first tokens of the text.

    group: tokens. back: the share of the shifted half of the heads that are not shifted after all; with 0, and no
    sinks, it is LongLoRA's shifted attention. sinks: first tokens that every query reads.
    """

    group: Positive = 2048
    back: Share = 0.5
    sinks: NonNegative = 4
    forgets: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Sink fixed attention",
        "SinkLoRA, 2406.05678, section 3.1",
        "tokens read their group; a part of the heads reads groups that lie half a group apart",
        "w_i = softmax over {j <= i : floor((j + d_h) / group) = floor((i + d_h) / group) or j < sinks} of s_ij, "
        "d_h = group / 2 in shifted heads, else 0",
        systems=(41,),
        equals=(Limit("a group as long as the text: plain attention", "heads", of="shifted(64)"),),
        deviations="its public code has the plain shift alone, so which heads are returned is chosen here: the first "
        "of the shifted half; groups are by places, so that nothing is rolled round the end; LoRA and eviction at "
        "inference are other parts (`headwise run`)",
    )

    def _shift(self, owner: Tensor, heads: int) -> Tensor:
        """How far the groups of the heads `owner` of `heads` are moved."""
        first = heads // 2 + round(self.back * (heads - heads // 2))
        return torch.where(owner >= first, self.group // 2, 0)

    def seen(self, field: Field) -> Tensor:
        shift = self._shift(field.owners, field.key_heads)
        own = (field.places + shift) // self.group == (field.asks + shift) // self.group
        return field.block.seen & (own | (field.places < self.sinks))

    def reads(self, lone: Lone) -> Sequence[int]:
        half = lone.key_heads // 2
        moved = lone.key_head >= half + round(self.back * (lone.key_heads - half))
        start = lone.place - (lone.place + (self.group // 2 if moved else 0)) % self.group
        first = list(range(min(self.sinks, max(0, start))))
        return [*first, *range(max(0, start), lone.place + 1)]

    def kept(self, places: Tensor, last: Tensor, values: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        shift = self._shift(owners(places), places.shape[1])
        own = (places + shift) // self.group == (last + 1 + shift) // self.group
        return own | (places < self.sinks)
