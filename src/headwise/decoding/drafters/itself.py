"""The model drafts for itself over a cache that is cheaper to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.decoding.base import Proposer
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive, Word
from headwise.recipe import Recipe


@register("itself")
@dataclass(frozen=True)
class Itself(Drafter):
    """Guesses with the same weights over a second cache under `recipe`, such as "streaming(512)" or "quest(256)".

    tokens: guesses at once.
    """

    recipe: Word = "streaming(512)"
    tokens: Positive = 4

    card = DrafterCard(
        title="Sparse-to-Dense (StD)",
        paper="Sparse-to-Dense: A Free Lunch for Lossless Acceleration of Video Understanding in LLMs, "
        "arXiv 2505.19155, section 3",
        systems=(164,),
        deviations="any recipe drafts, and text; the draft has a cache of its own that reads the prompt as well, where "
        "the paper's sparse pass reads part of the one cache",
    )

    def conflict(self) -> str | None:
        Recipe.parse(self.recipe)
        return super().conflict()

    def start(self, model: Any) -> Proposer:
        from headwise.decoding.second import Second  # and with it transformers, which a list of drafters does without

        return Second(model, Recipe.parse(self.recipe), self.tokens)
