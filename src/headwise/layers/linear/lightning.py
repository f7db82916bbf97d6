"""Lightning attention: linear attention whose heads forget at fixed speeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Lane, Streams, StreamShape
from headwise.layers.decayed import Decayed, decayed_sum
from headwise.layers.gates import FixedDecay, Gates
from headwise.layers.running import Terms


@layer_part("mix", "lightning")
@dataclass(frozen=True)
class Lightning(Decayed):
    """Each head's memory decays by a fixed factor a token, slower in later layers.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "gated('sigmoid')"
    card: ClassVar[LayerCard] = LayerCard(
        "Lightning attention",
        "Lightning Attention-2, 2401.04658, section 3.2; decays of TransNormerLLM, 2307.14995, section 3.1",
        "a memory a head that fades stands for all keys, and nothing divides what is read",
        "o_i = sum_(j <= i) lambda_h^(i-j) (q_i . k_j) v_j, lambda_h = exp(-(8 h / heads) (1 - layer / layers))",
        systems=(18, 53, 55),
        state="constant",
        deviations="of rows 18, 53 and 55 the layer: no LRPE, plain torch in blocks",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        heads = torch.arange(1, shape.heads + 1, dtype=torch.float32)
        return Gates({"decay": FixedDecay(-8 / shape.heads * heads * (1 - dims.layer / dims.layers))})

    def terms(self, streams: Streams) -> Terms:
        return Terms(F.silu(streams.q), F.silu(streams.k) * streams.scale, streams.v, streams.gates["decay"])

    def alone(self, lane: Lane) -> Tensor:
        q, k = (x / (1 + (-x).exp()) for x in (lane.q, lane.k))
        return decayed_sum(Lane(q, k, lane.v, lane.gates, lane.scale, lane.head, lane.heads), lane.v) * lane.scale
