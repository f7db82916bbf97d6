"""Every head owns a shard of the far context, in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.patterns import Field, Lone, Pattern, owners


@layer_part("pattern", "sharded")
@dataclass(frozen=True)
class Sharded(Pattern):
    """A query reads the last blocks, and of those before them every few, which differ from head to head.

    block: tokens. local: blocks, the query's own among them. stride: of the far blocks a head reads one in so many.
    dense: heads, the last, that read everything.
    """

    block: Positive = 64
    local: Positive = 16
    stride: Positive = 8
    dense: NonNegative = 0
    forgets: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Context sharded over heads",
        "S2-Attention, 2407.17678, section 3; its kernels' block masks",
        "heads share the far context out among them",
        "block c is read from block b by head h where b - c < local or (c + h step + 1) mod stride = 0",
        systems=(4,),
        equals=(
            Limit("a stride of 1: plain attention", "heads", of="sharded(2, local=1, stride=1)"),
            Limit("as many local blocks as there are: plain attention", "heads", of="sharded(2, local=64)"),
        ),
        deviations="masks as its kernels make them, computed here densely; heads are those of keys, so that a group of "
        "queries shares its shard and cache",
    )

    def _read(self, block: Tensor, asking: Tensor, owner: Tensor, heads: int) -> Tensor:
        """Whether key blocks are read from the blocks `asking` by the heads `owner` of `heads`."""
        step = max(1, self.stride // heads)
        shard = (block + owner * step + 1) % self.stride == 0
        return (asking - block < self.local) | shard | (owner >= heads - self.dense)

    def seen(self, field: Field) -> Tensor:
        blocks, asking = field.places // self.block, field.asks // self.block
        return field.block.seen & self._read(blocks, asking, field.owners, field.key_heads)

    def reads(self, lone: Lone) -> Sequence[int]:
        own = lone.place // self.block
        step = max(1, self.stride // lone.key_heads)
        return [
            j
            for j in range(lone.place + 1)
            if own - j // self.block < self.local
            or (j // self.block + lone.key_head * step + 1) % self.stride == 0
            or lone.key_head >= lone.key_heads - self.dense
        ]

    def kept(self, places: Tensor, last: Tensor, values: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return self._read(places // self.block, (last + 1) // self.block, owners(places), places.shape[1])
