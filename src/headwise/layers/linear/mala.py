"""Magnitude-aware linear attention: how long a query is decides how sharply it looks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Streams
from headwise.layers.offset import Offset

EPS = 1e-6  # added to the mean product, as in the official code


def _equal_keys(streams: Streams) -> Streams:
    return replace(streams, k=torch.zeros_like(streams.k))


@layer_part("mix", "mala")
@dataclass(frozen=True)
class Mala(Offset):
    """Weights are products times 1 + 1/z, less z over the number of keys, z the mean product.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "gated"
    card: ClassVar[LayerCard] = LayerCard(
        "Magnitude-aware linear attention",
        "Rectifying Magnitude Neglect in Linear Attention, 2507.00698, section 3.2, equations 8 to 11",
        "weights grow apart as a query gets longer, and still sum to 1",
        "w_ij = (1 + 1/z_i) p_ij - z_i / i, p_ij = f(q_i).f(k_j) / (sqrt(d) i), z_i = sum_j p_ij, f(x) = elu(x) + 1",
        systems=(63,),
        state="constant",
        equals=(Limit("equal keys: the softmax of such keys, a mean", "softmax", _equal_keys),),
        deviations="of row 63 the causal attention, over i keys so far where the paper has all n; no rotary "
        "positions after the features, and the gate is that of `gated`, with a norm; its depthwise convolution of "
        "values is short_conv's",
    )

    def features(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1

    def numbers(self, total: Tensor, count: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        mean = total * scale / count
        return (1 + 1 / (mean + EPS)) * scale / count, -mean / count

    def weights(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        q, k = (x.clamp_min(0) + x.clamp_max(0).exp() for x in (q, k))
        products = torch.stack([scale / len(k) * (q @ key) for key in k])
        mean = products.sum()
        return (1 + 1 / (mean + EPS)) * products - mean / len(k)
