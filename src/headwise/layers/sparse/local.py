"""Short spans: a query reads its last neighbours alone, in most layers of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.patterns import Field, Lone, Pattern


@layer_part("pattern", "local")
@dataclass(frozen=True)
class Local(Pattern):
    """A query reads the last tokens before it and itself.

    span: tokens, the query's own among them.
    """

    span: Positive = 256
    forgets: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Layers of short spans",
        "MASFormer, 2310.12442, section 3; as a pattern of layers such as `2*local(256), heads`",
        "most layers read neighbours alone, and a few read everything",
        "w_i = softmax over {j : i - span < j <= i} of s_ij",
        systems=(253,),
        state="constant",
        equals=(Limit("a span as long as the text: plain attention", "heads", of="local(64)"),),
        deviations="a sliding window, where the paper's short spans are blocks; which layers read everything is said "
        "by the host's pattern of layers",
    )

    def seen(self, field: Field) -> Tensor:
        return field.block.seen & (field.asks - field.places < self.span)

    def reads(self, lone: Lone) -> Sequence[int]:
        return range(max(0, lone.place - self.span + 1), lone.place + 1)

    def kept(self, places: Tensor, last: Tensor, values: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return last + 1 - places < self.span + 1

    def stored(self, tokens: int, key_heads: int) -> int:
        return min(tokens, self.span)
