"""InLine: linear attention that subtracts the mean weight where others divide, so that no two queries see the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Streams
from headwise.layers.offset import Offset


def _asking_nothing(streams: Streams) -> Streams:
    return Streams(torch.zeros_like(streams.q), streams.k, streams.v, streams.segments, streams.scale)


@layer_part("mix", "inline")
@dataclass(frozen=True)
class InLine(Offset):
    """Weights are a key's product over the mean product, plus a mean's share: they sum to 1, and may be below 0.

    feature: of a channel; "identity", as the official code has it, or "relu". block: tokens that are computed at once.
    """

    feature: Literal["identity", "relu"] = "identity"
    card: ClassVar[LayerCard] = LayerCard(
        "Injective linear attention",
        "InLine, 2412.06590, section 3.2, equation 5; its code's scale of products, 1 / (sqrt(d) n)",
        "weights are shifted to a sum of 1 in place of divided, so that a longer query looks more sharply",
        "w_ij = c f(q_i).f(k_j) - (1/i) sum_s c f(q_i).f(k_s) + 1/i, c = 1 / (sqrt(d) i)",
        systems=(56,),
        state="constant",
        equals=(Limit("queries of 0: the softmax of such queries, a mean", "softmax", _asking_nothing),),
        deviations="of row 56 the causal attention, over i keys so far where the paper has all n; its local "
        "residual, a 3 x 3 convolution of an image's values, is not here (short_conv is the nearest of texts)",
    )

    def features(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.feature == "relu" else x

    def numbers(self, total: Tensor, count: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        share = scale / count
        return share, (1 - share * total) / count

    def weights(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        if self.feature == "relu":
            q, k = q.clamp_min(0), k.clamp_min(0)
        products = torch.stack([scale / len(k) * (q @ key) for key in k])
        return products - products.mean() + 1 / len(k)
