"""Explanations beside one another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, ClassVar

import torch

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.explanations import EXPLANATIONS
from headwise.lens.explained import comprehensiveness, kendall
from headwise.lens.trials.hosts import copied, subject_of

OF_ATTENTION, OF_GRADIENTS = ("attention", "rollout"), ("gradient", "integrated")
ALL = (*OF_ATTENTION, *OF_GRADIENTS, "flow", "lime", "leave_out")


@register("agreement")
@dataclass(frozen=True, kw_only=True)
class Agreement(Experiment):
    """Explains what a model copies in seven ways, and compares the rankings and what becomes of the model by each.

    model: a pretrained one; "" trains two layers to copy. steps: of that training. prompts: explained in a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Disagreement of explanations",
        statement="Attention weights and attention rollout rank tokens unlike gradients do, and agreement with another "
        "explanation says nothing of whether the model heeds what one names",
        paper="A Song of (Dis)agreement: Evaluating the Evaluation of Explainable Artificial Intelligence in Natural "
        "Language Processing, arXiv 2205.04559, sections 3 and 4",
        setting="LSTMs and DistilBERT, LIME, integrated gradients, DeepLIFT, gradient SHAP and deep SHAP",
        seconds=60,
        systems=(73,),
        differs="a decoder that copies random tokens; magnitudes of signed explanations are ranked",
        leaves_out="DeepLIFT, gradient SHAP, deep SHAP and LSTMs",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("Kendall's tau of attention or rollout with gradients, the mean of the four pairs", "tau",
             "tau rollout flow", "rollout with flow", below=0.5),
        Part("how far the probability falls without the tokens that raw attention names, which agrees least",
             "falls attention", "falls random", "tokens by chance", above=0.9),
    )  # fmt: skip

    model: str = ""
    steps: Steps = 150
    prompts: Size = 8
    seeds: Seeds = 10

    def draw(self, seed: int) -> dict[str, Any]:
        """Mean taus and falls over the prompts of one seed; and the map of all pairs."""
        chance = torch.Generator().manual_seed(seed)
        found: dict[str, list[float]] = {}
        for prompt in copied(subject_of(self.model, seed, self.steps), self.prompts, chance):
            told = {name: EXPLANATIONS.get(name).of(prompt).abs() for name in ALL}
            for one, other in combinations(ALL, 2):
                found.setdefault(f"tau {one} {other}", []).append(kendall(told[one], told[other]))
            for name, figures in told.items():
                found.setdefault(f"falls {name}", []).append(comprehensiveness(prompt, figures))
            by_chance = comprehensiveness(prompt, torch.rand(prompt.tokens, generator=chance))
            found.setdefault("falls random", []).append(by_chance)
        means = {name: sum(one) / len(one) for name, one in found.items()}
        pairs = [means[f"tau {one} {other}"] for one, other in product(OF_ATTENTION, OF_GRADIENTS)]
        means["tau"] = sum(pairs) / len(pairs)
        return {"measures": means}
