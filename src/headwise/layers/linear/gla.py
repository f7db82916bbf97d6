"""Gated linear attention: every channel of a key forgets at a speed that the token decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from headwise.knobs import Positive, PositiveWeight
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Lane, Streams, StreamShape
from headwise.layers.decayed import Decayed, decayed_sum
from headwise.layers.gates import Gates
from headwise.layers.norms import wide
from headwise.layers.projections import linear, split
from headwise.layers.running import Terms


@layer_part("mix", "gla")
@dataclass(frozen=True)
class Gla(Decayed):
    """Each channel of a memory decays by a factor that is made of the token.

    rank: channels through which the factors are made. temper: root that is taken of them, so that they begin near 1.
    block: tokens that are computed at once.
    """

    rank: Positive = 16
    temper: PositiveWeight = 16.0
    usual: ClassVar[str] = "gated"
    card: ClassVar[LayerCard] = LayerCard(
        "Gated linear attention",
        "Gated Linear Attention Transformers with Hardware-Efficient Training, 2312.06635, section 4",
        "a memory a head, whose channels fade as the token says, stands for all keys",
        "M_t = diag(a_t) M_(t-1) + k_t v_t^T, o_t = M_t^T q_t / sqrt(d), a_t = sigmoid(W_2 W_1 x_t + b)^(1/16)",
        state="constant",
        equals=(
            Limit(
                "one decay for all channels and tokens of a head: retention",
                "retention",
                lambda s: s.with_gates(decay=s.gates["decay"][:, :, :1, :1].expand(-1, -1, s.k.shape[2], s.k.shape[3])),
            ),
        ),
        deviations="keys are as wide as a head, where the paper has half of that",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        return Gates({"decay": SigmoidDecay(self, dims.width, shape)})

    def terms(self, streams: Streams) -> Terms:
        return Terms(streams.q * streams.scale, streams.k, streams.v, streams.gates["decay"])

    def alone(self, lane: Lane) -> Tensor:
        return decayed_sum(lane, lane.v) * lane.scale


class SigmoidDecay(nn.Module):
    """Logarithms of sigmoids through a low rank, [batch, heads, tokens, key dim]."""

    def __init__(self, part: Gla, width: int, shape: StreamShape) -> None:
        super().__init__()
        self.heads, self.temper = shape.heads, part.temper
        self.down = linear(width, part.rank)
        self.up = nn.Linear(part.rank, shape.heads * shape.key_dim)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens, key dim]."""
        return split(F.logsigmoid(wide(self.up(self.down(x)))) / self.temper, self.heads)
