"""Rollout and flow beside raw attention, against leaving tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.explanations import EXPLANATIONS
from headwise.lens.explained import spearman
from headwise.lens.trials.hosts import copied, subject_of


@register("rollout")
@dataclass(frozen=True, kw_only=True)
class Rollout(Experiment):
    """Explains what a model copies by rollout, flow and the last layer's attention, and by leaving each token out.

    model: a pretrained one; "" trains two layers to copy. steps: of that training. prompts: explained in a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention rollout and flow",
        statement="Attention rollout and attention flow rank a prompt's tokens more like their importance by leaving "
        "them out than the last layer's attention does",
        paper="Quantifying Attention Flow in Transformers, arXiv 2005.00928, sections 3 and 4",
        setting="BERT on verb number and sentiment; Spearman's correlation",
        seconds=20,
        systems=(213,),
        differs="a decoder that copies random tokens, and tokens made blank; the last token's row",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("Spearman's correlation of rollout with leaving out, less that of raw attention", "rollout",
             "rollout_shuffled", "rollout of other tokens", above=0.0),
        Part("the same of flow", "flow", "flow_shuffled", "flow of other tokens", above=0.0),
    )  # fmt: skip

    model: str = ""
    steps: Steps = 150
    prompts: Size = 16

    def draw(self, seed: int) -> dict[str, Any]:
        """Mean correlations over the prompts of one seed."""
        chance = torch.Generator().manual_seed(seed)
        found: dict[str, list[float]] = {}
        for prompt in copied(subject_of(self.model, seed, self.steps), self.prompts, chance):
            truth = EXPLANATIONS.get("leave_out").of(prompt).abs()
            raw = spearman(EXPLANATIONS.get("attention").of(prompt), truth)
            order = torch.randperm(prompt.tokens, generator=chance)
            for name in ("rollout", "flow"):
                told = EXPLANATIONS.get(name).of(prompt)
                found.setdefault(name, []).append(spearman(told, truth) - raw)
                found.setdefault(f"{name}_shuffled", []).append(spearman(told[order], truth) - raw)
                found.setdefault(f"{name}_alone", []).append(spearman(told, truth))
            found.setdefault("attention", []).append(raw)
        return {"measures": {name: sum(one) / len(one) for name, one in found.items()}}
