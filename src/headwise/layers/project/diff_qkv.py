"""DiffQKV: queries, keys and values have as many heads, and as wide ones, as each is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, State, Streams, StreamShape
from headwise.layers.projections import Linears, linear


@layer_part("project", "diff_qkv")
@dataclass(frozen=True)
class DiffQkv(Project):
    """Keys have fewer heads than values, and may be narrower; queries may be made through a wider hidden layer.

    key_heads, value_heads: of which the layer's heads are multiples, and one of which is a multiple of the other.
    key_dim: channels of a key; 0 is the width of a head. augmented: channels of the hidden layer of queries; 0 is none.
    """

    key_heads: Positive = 1
    value_heads: Positive = 2
    key_dim: NonNegative = 0
    augmented: NonNegative = 0
    card: ClassVar[LayerCard] = LayerCard(
        "DiffQKV",
        "Sigma, 2501.13629, section 2.1",
        "what is stored is spent on values rather than on keys, and queries, which are not stored, may be large",
        "n_k < n_v < n_q heads, k_g = W_k,g x [d_k], v_g = W_v,g x [d], q_h = W_q,h silu(W_aug x) [d_k]",
        systems=(5,),
        deviations="of row 5 the projection: values are all read, where the paper may load those of the highest "
        "weights alone; its augmented queries are wider ones, of which the hidden layer here is a reading",
    )

    def shape(self, dims: Dims) -> StreamShape:
        large, small = max(self.key_heads, self.value_heads), min(self.key_heads, self.value_heads)
        if dims.heads % large or large % small:
            raise RecipeError(
                f"diff_qkv: {dims.heads} heads cannot share {self.key_heads} heads of keys and {self.value_heads} of "
                f"values; give numbers of which the larger divides {dims.heads} and the smaller the larger"
            )
        return StreamShape(dims.heads, self.key_heads, self.value_heads, self.key_dim or dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Linears:
        return Augmented(dims, self) if self.augmented else Linears(dims, self.shape(dims))


class Augmented(Linears):
    """The module of `diff_qkv` whose queries have a hidden layer."""

    def __init__(self, dims: Dims, part: DiffQkv) -> None:
        super().__init__(dims, part.shape(dims))
        self.wider = linear(dims.width, part.augmented)
        self.q = linear(part.augmented, self.q.out_features)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x [batch, tokens, width]`; there is no state."""
        return self.streams(self.q(nn.functional.silu(self.wider(x))), self.k(x), self.v(x), segments), None
