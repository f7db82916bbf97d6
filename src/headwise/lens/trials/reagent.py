"""ReAGent against attention and chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.explanations import EXPLANATIONS
from headwise.lens.explained import comprehensiveness, sufficiency
from headwise.lens.trials.hosts import HALF, copied, subject_of

NEAREST = 0.1  # share of a prompt's tokens among which the copied one has to be


@register("reagent")
@dataclass(frozen=True, kw_only=True)
class Reagent(Experiment):
    """Explains what a model copies by replacing tokens, by the last layer's attention and by chance.

    model: a pretrained one; "" trains two layers to copy. steps: of that training. prompts: explained in a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="ReAGent",
        statement="Importance by replacing tokens, without gradients or internals, finds the token that is copied, and "
        "is more faithful than the last layer's attention",
        paper="ReAGent: Towards A Model-agnostic Feature Attribution Method for Generative Language Models, arXiv "
        "2402.00794, sections 3 and 5",
        setting="six language models on LongRA, TellMeWhy and WikiBio; soft normalised sufficiency and "
        "comprehensiveness",
        seconds=60,
        systems=(78,),
        differs="a decoder that copies random tokens; tokens are made blank outright, and not by chance in proportion "
        "to their importance",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("prompts whose copied token is among the tenth of highest importance, share", "nearest", "nearest_random",
             "importance by chance", above=0.5),
        Part("sufficiency, less that of raw attention", "sufficient", "sufficient_random", "importance by chance",
             above=0.0),
        Part("comprehensiveness, less that of raw attention", "comprehensive", "comprehensive_random",
             "importance by chance", above=0.0),
    )  # fmt: skip

    model: str = ""
    steps: Steps = 150
    prompts: Size = 8
    seeds: Seeds = 12

    def draw(self, seed: int) -> dict[str, Any]:
        """Means over the prompts of one seed."""
        chance = torch.Generator().manual_seed(seed)
        found: dict[str, list[float]] = {}
        for prompt in copied(subject_of(self.model, seed, self.steps), self.prompts, chance):
            raw = EXPLANATIONS.get("attention").of(prompt)
            told = {"": EXPLANATIONS.get("reagent").of(prompt), "_random": torch.rand(prompt.tokens, generator=chance)}
            source = prompt.tokens - HALF  # where what is said next stood first
            for kind, one in told.items():
                rank = int((one > one[source]).sum())
                found.setdefault(f"nearest{kind}", []).append(float(rank < max(1, round(NEAREST * prompt.tokens))))
                for name, measure in (("sufficient", sufficiency), ("comprehensive", comprehensiveness)):
                    found.setdefault(name + kind, []).append(measure(prompt, one) - measure(prompt, raw))
        return {"measures": {name: sum(one) / len(one) for name, one in found.items()}}
