"""Tokens that are alike are sent to the same experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, feed_part
from headwise.layers.attend import SEGMENT_BYTES, Attend
from headwise.layers.base import State, Streams
from headwise.layers.experts.experts import Sent
from headwise.layers.feeds import Feed
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.position.nope import Nope
from headwise.layers.projections import linear
from headwise.layers.score.dot import Dot


@feed_part("similar_experts")
@dataclass(frozen=True)
class SimilarExperts(Feed):
    """A token's router is asked together with those of the tokens before it, as much as these are like it.

    count: experts. top: of them that a token is sent to.
    """

    count: Positive = 4
    top: Positive = 1
    card: ClassVar[LayerCard] = LayerCard(
        "Similarity-aware mixture of experts",
        "Improving Routing in Sparse Mixture of Experts with Graph of Tokens, 2505.00792, section 3",
        "experts are chosen by a token and what it is like, so that choices jump less",
        "p_i = sum over j <= i of softmax_j(x_i W x_j / sqrt(d)) softmax(W_r x_j), then the top experts of p_i",
        systems=(17,),
        deviations="the form by similarity; the one that takes the block's own attention weights is not here. Tokens "
        "after the query are left out, as a decoder must; the state holds every token's input",
    )

    def conflict(self) -> str | None:
        return (
            None if self.top <= self.count else f"top={self.top} of {self.count} experts; give top {self.count} or less"
        )

    def build(self, width: int, hidden: int) -> Graph:
        return Graph(self.count, self.top, width, hidden)

    def state_bytes(self, width: int, tokens: int, element: int) -> int:
        return tokens * ((width + self.count) * element + SEGMENT_BYTES)


class Graph(Sent):
    """The module of `similar_experts`."""

    def __init__(self, count: int, top: int, width: int, hidden: int) -> None:
        super().__init__(count, top, width, hidden)
        self.like = linear(width, width)
        self.reader = Attend(Nope(), Dot(), Softmax())

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What is added to `x`, and what is held of every token for the choices of later ones."""
        own = self.router(x).to(x.dtype)
        asked = Streams(self.like(x)[:, None], x[:, None], own[:, None], segments, x.shape[-1] ** -0.5)
        shares, after = self.reader.chunk(asked, self.reader.empty(asked) if state is None else state)
        return self.answered(x, shares[:, 0]), after
