"""Linear attention with a feature for each channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.mapped import Mapped


@layer_part("mix", "linear")
@dataclass(frozen=True)
class Linear(Mapped):
    """The weight of a key is the product of its features and the query's, divided by the sum of weights.

    feature: of a channel, "elu" is elu(x) + 1, "relu" is max(x, 0). block: tokens that are computed at once.
    """

    feature: Literal["elu", "relu"] = "elu"
    card: ClassVar[LayerCard] = LayerCard(
        "Linear attention",
        "Transformers are RNNs, 2006.16236, sections 3.2 and 3.3",
        "weights are f(q).f(k), so that one memory a head stands for all keys",
        "o_i = f(q_i)^T sum_j f(k_j) v_j^T / f(q_i)^T sum_j f(k_j), f(x) = elu(x) + 1",
        state="constant",
    )

    def features(self, x: Tensor, scale: float) -> Tensor:
        return F.elu(x) + 1 if self.feature == "elu" else F.relu(x)

    def kernel(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        def feature(x: Tensor) -> Tensor:
            return x.clamp_min(0) + (x.clamp_max(0).exp() if self.feature == "elu" else 0)

        return (feature(q) * feature(k)).sum()
