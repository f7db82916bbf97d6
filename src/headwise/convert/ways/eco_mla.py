"""X-EcoMLA: a latent layer begun from the singular vectors of trained keys and values, to be distilled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from headwise.conversions import Conversion, ConversionCard, register
from headwise.convert.latent import check_rank, check_rope, most_rank, redrawn, singular, usual
from headwise.knobs import NonNegative
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import Decoder, as_deepseek


@register("eco_mla")
@dataclass(frozen=True)
class EcoMla(Conversion):
    """The matrices that make keys and values are cut to those singular vectors that weigh most, whatever texts are
    like; the last channels of a head become one turned key, the mean over KV heads.

    rank: channels of the latent; 0 is all. rope: channels of the turned key; 0 is half a head. start: "svd", or
    "random" matrices as large as those, the control. seed: of "random".
    """

    rank: NonNegative = 0
    rope: NonNegative = 0
    start: Literal["svd", "random"] = "svd"
    seed: NonNegative = 0
    card: ClassVar[ConversionCard] = ConversionCard(
        "Latent attention from singular vectors",
        "X-EcoMLA, 2503.11132, section 3",
        "with rank=0 and rope as wide as a head, of a model whose KV heads are all equal; of others rank=0 keeps "
        "values, and the first channels of keys, which no position turns any more",
        "transformers' DeepSeek-V3 without experts",
        deviations="queries are not factored, which saves no cache; one rank for all layers; no norm between the "
        "factors, which the official code has as an option",
        systems=(272,),
        leaves_out="the factors of the query matrix, ranks by energy, a larger teacher, and DPO after the distillation",
    )
    equal_heads: ClassVar[bool] = True

    @classmethod
    def exact(cls, source: Decoder) -> EcoMla:
        return cls(rope=source.head_dim)

    def check(self, source: Decoder) -> None:
        check_rope("eco_mla", self.rope, source, source.head_dim)
        check_rank("eco_mla", self.rank, most_rank(source), "keys and values of all heads, or the model,")

    def build(self, source: Decoder, looked: Looked) -> Any:
        rope, rank = self._sizes(source)
        made = [
            singular(source, one, moment, rank, rope) for one, moment in zip(source.layers, looked.moments, strict=True)
        ]
        if self.start == "random":
            drawn = torch.Generator().manual_seed(self.seed)
            made = [redrawn(one, drawn) for one in made]
        return as_deepseek(source, made, usual(source, rope))

    def cache_numbers(self, source: Decoder) -> int:
        return len(source.layers) * (1 + sum(self._sizes(source)))

    def _sizes(self, source: Decoder) -> tuple[int, int]:
        return self.rope or source.head_dim // 2, self.rank or most_rank(source)
