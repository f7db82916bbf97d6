"""Tokens of the same cluster read one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.codes import centres, nearest
from headwise.layers.patterns import Field, Lone, Pattern

CENTRES = "cluster_centres"


@layer_part("pattern", "clusters")
@dataclass(frozen=True)
class Clusters(Pattern):
    """A query reads the keys before it that lie nearest to the same centre as itself, and its last neighbours. The
    hook `move_centres` lets centres follow the keys in training.

    count: centres a head. span: last tokens that are always read, the query's own among them; 0 is none but itself.
    """

    count: Positive = 8
    span: NonNegative = 1
    card: ClassVar[LayerCard] = LayerCard(
        "Routing Transformer",
        "Efficient Content-Based Sparse Attention with Routing Transformers, 2003.05997, section 4",
        "tokens are read by what they say, wherever they stand",
        "w_i = softmax over {j <= i : argmax_c mu_c . q_i = argmax_c mu_c . k_j, or i - span < j} of s_ij",
        systems=(42,),
        equals=(Limit("one cluster: plain attention", "heads", of="clusters(1)"),),
        deviations="a cluster has all tokens that lie nearest, where the paper's are the nearest few of each centre, "
        "so that clusters need not be of one size; queries and keys are not shared; the same heads read neighbours, "
        "where the paper has other heads for them. All keys are held",
    )

    def fixed(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {CENTRES: centres(shape.heads, 1, self.count, shape.key_dim)}

    def seen(self, field: Field) -> Tensor:
        known = field.block.learned[CENTRES]
        asked, held = nearest(field.block.q, known)[..., 0], nearest(field.block.k, known)[..., 0]
        near = field.asks - field.places < max(1, self.span)
        return field.block.seen & ((asked[..., None] == held[:, :, None]) | near)

    def reads(self, lone: Lone) -> Sequence[int]:
        known = lone.row.learned[CENTRES][0]
        own = (known @ lone.row.q).argmax()
        near = range(lone.place - max(1, self.span) + 1, lone.place + 1)
        return [j for j, k in enumerate(lone.row.k) if j in near or (known @ k).argmax() == own]
