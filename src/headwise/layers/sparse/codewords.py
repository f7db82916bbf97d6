"""Keys are quantised in pieces, and a query reads those that share most of its codewords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.errors import RecipeError
from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.codes import centres, nearest
from headwise.layers.patterns import Field, Lone, Pattern

BOOKS = "codeword_books"


@layer_part("pattern", "codewords")
@dataclass(frozen=True)
class Codewords(Pattern):
    """Queries and keys are cut into pieces, each known by its nearest codeword; a query reads the keys that share most
    codewords with it, of equals the newest.

    width: keys that a query reads. books: pieces. codes: codewords of a piece; with 1 all keys are equal.
    """

    width: Positive = 64
    books: Positive = 2
    codes: Positive = 8
    card: ClassVar[LayerCard] = LayerCard(
        "Attention to shared codewords",
        "SPT, 2312.10365, section 4",
        "which keys are likely to weigh is told by integers, before any product",
        "w_i = softmax over the width keys j <= i of largest #{m : c_m(q_i) = c_m(k_j)} of s_ij",
        systems=(95,),
        equals=(
            Limit("as many keys as there are: plain attention", "heads", of="codewords(64)"),
            Limit("one codeword: a span", "local(4)", of="codewords(4, codes=1)"),
        ),
        deviations="codewords are random directions that are never trained, and the nearest is that of the smallest "
        "angle, where the paper's follow the keys; keys are sorted, not put into buckets. Of row 95 its routed "
        "feed-forward network is `experts`",
    )

    def fixed(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        if shape.key_dim % self.books:
            raise RecipeError(
                f"codewords: keys of {shape.key_dim} channels have no {self.books} equal pieces; give books a number "
                f"that divides {shape.key_dim}"
            )
        return {BOOKS: centres(shape.heads, self.books, self.codes, shape.key_dim // self.books)}

    def seen(self, field: Field) -> Tensor:
        known = field.block.learned[BOOKS]
        asked, held = nearest(field.block.q, known), nearest(field.block.k, known)
        shared = (asked[:, :, :, None] == held[:, :, None]).sum(-1)
        order = (shared * (int(field.places.max()) + 1) + field.places).masked_fill(~field.block.seen, -1)
        least = order.topk(min(self.width, order.shape[-1]), dim=-1).values[..., -1:]
        return field.block.seen & (order >= least)

    def reads(self, lone: Lone) -> Sequence[int]:
        known = lone.row.learned[BOOKS]

        def words(x: Tensor) -> list[int]:
            return [
                max(range(self.codes), key=lambda c: float((book[c] @ piece).detach()))
                for book, piece in zip(known, x.chunk(self.books), strict=True)
            ]

        asked = words(lone.row.q)
        shared = [sum(a == b for a, b in zip(asked, words(k), strict=True)) for k in lone.row.k]
        return sorted(sorted(range(len(shared)), key=lambda j: (-shared[j], -j))[: self.width])
