"""Fewer heads of keys and values, each the mean of those that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from headwise.conversions import Conversion, ConversionCard, register
from headwise.errors import RecipeError
from headwise.knobs import NonNegative, Positive
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import Decoder, as_llama


@register("gqa")
@dataclass(frozen=True)
class Gqa(Conversion):
    """Neighbouring KV heads become one.

    kv_heads: how many there are afterwards. start: each is the "mean" of those that it stands for, the "first" of them,
    or "random", as large as they are; the last two are controls. seed: of "random".
    """

    kv_heads: Positive = 1
    start: Literal["mean", "first", "random"] = "mean"
    seed: NonNegative = 0
    card: ClassVar[ConversionCard] = ConversionCard(
        "Fewer KV heads by mean pooling",
        "GQA, 2305.13245, section 2.1",
        "with as many KV heads as there are; with fewer, of a model whose heads within each group are equal",
        "the source's own class",
        systems=(233,),
        leaves_out="uptraining on the text alone: what follows here is a distillation",
    )
    equal_heads: ClassVar[bool] = True

    @classmethod
    def exact(cls, source: Decoder) -> Gqa:
        return cls(kv_heads=1)

    def check(self, source: Decoder) -> None:
        if source.kv_heads % self.kv_heads:
            raise RecipeError(
                f"gqa: {source.kv_heads} KV heads cannot be shared out among {self.kv_heads}; give kv_heads a number "
                f"that divides {source.kv_heads}"
            )

    def build(self, source: Decoder, looked: Looked) -> Any:
        made = torch.Generator().manual_seed(self.seed)

        def fewer(weight: Tensor) -> Tensor:
            return self._pooled(weight.unflatten(0, (self.kv_heads, -1, source.head_dim)), made).flatten(0, 1)

        return as_llama(source, [(fewer(one.k), fewer(one.v)) for one in source.layers])

    def cache_numbers(self, source: Decoder) -> int:
        return 2 * len(source.layers) * self.kv_heads * source.head_dim

    def _pooled(self, groups: Tensor, made: torch.Generator) -> Tensor:
        """`[groups, heads of each, head dim, width]` -> one head a group."""
        if self.start == "random":
            return torch.randn(groups[:, 0].shape, generator=made) * groups.std()
        return groups.mean(1) if self.start == "mean" else groups[:, 0]
