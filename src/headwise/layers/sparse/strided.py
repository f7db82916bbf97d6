"""Each head reads every few tokens, beginning elsewhere than its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.patterns import Field, Lone, Pattern, owners


@layer_part("pattern", "strided")
@dataclass(frozen=True)
class Strided(Pattern):
    """Head h reads the tokens h, h + stride, h + 2 stride and so on, and the query its own token.

    stride: tokens; every token is read by a head where there are as many heads.
    """

    stride: Positive = 4
    forgets: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Head-wise positional strides",
        "Hepos, 2104.02112, section 3.2",
        "heads share the tokens out among them, and hold a part each",
        "w_i = softmax over {j <= i : (j - h) mod stride = 0 or j = i} of s_ij",
        systems=(176,),
        equals=(Limit("a stride of 1: plain attention", "heads", of="strided(1)"),),
        deviations="causal attention of a decoder over its own tokens, where the paper has the decoder read an "
        "encoder; a query reads its own token too, which the head that owns no token before it needs; heads are those "
        "of keys",
    )

    def seen(self, field: Field) -> Tensor:
        own = (field.places - field.owners) % self.stride == 0
        return field.block.seen & (own | (field.places == field.asks))

    def reads(self, lone: Lone) -> Sequence[int]:
        own = range(lone.key_head % self.stride, lone.place + 1, self.stride)
        return own if lone.place in own else [*own, lone.place]

    def kept(self, places: Tensor, last: Tensor, values: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return (places - owners(places)) % self.stride == 0
