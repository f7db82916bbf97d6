"""Embedding models that were trained apart become one, by weights and a scale that are learnt on a few examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy, normalize

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.theory.fitting import adam, generator

TASKS, WIDTH, OUT, NOISE = 3, 32, 16, 0.6  # tasks; channels of a text and of its embedding; of the noise between pairs
RATE, TEMPERATURE, PENALTY = 1e-2, 0.1, 1e-3
EXAMPLES = (4096, 512, 64)  # pairs that each task has to train on: data are out of balance
Pairs = tuple[torch.Tensor, torch.Tensor]


@register("merged_models")
@dataclass(frozen=True, kw_only=True)
class MergedModels(Experiment):
    """Three tasks of pairs of texts, each with channels of its own that tell pairs and with others that mislead; a
    model is trained on each, and all are merged.

    steps: of each training. probe: pairs of each task that the merging is learnt on.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Self Positioning",
        statement="Merged by weights and a scale that gradient descent finds on a small probe set, models of several "
        "tasks lose no more over all tasks than their uniform average, and than the best of them",
        paper="Improving General Text Embedding Model: Tackling Task Conflict and Data Imbalance through Model "
        "Merging, arXiv 2410.15035, its Self Positioning",
        setting="BERT-base and E5, retrieval and likeness of sentences, probe sets of 32,000 pairs",
        seconds=20,
        systems=(86,),
        differs="linear embeddings of drawn texts; Adam in the place of plain gradient descent; the weights of tasks "
        "are a softmax, the penalty on the scale is its square",
        leaves_out="models of language",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("held-out loss over that of the uniform average", "over_uniform", "random_over_uniform",
             "the mean over random weights of the same scale", below=1.0),
        Part("held-out loss over that of the best single model", "over_best", "random_over_best",
             "the mean over random weights of the same scale", below=1.0),
    )  # fmt: skip

    steps: Steps = 300
    probe: Size = 64

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses of what is merged, over all tasks."""
        chance = generator(self.name, seed)
        masks = torch.rand(TASKS, WIDTH, generator=chance) < 0.5
        base = torch.randn(WIDTH, OUT, generator=chance) / WIDTH**0.5
        moved = torch.stack([self.trained(base, pairs(masks[i], EXAMPLES[i], chance), chance) - base
                             for i in range(TASKS)])  # fmt: skip
        probes = [pairs(mask, self.probe, chance) for mask in masks]
        held = [pairs(mask, 256, chance) for mask in masks]
        lots, scale = torch.zeros(TASKS, requires_grad=True), torch.ones((), requires_grad=True)

        def merged(weights: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
            return base + size * torch.einsum("t,tio->io", weights, moved)

        def loss() -> torch.Tensor:
            return mean_loss(merged(lots.softmax(0), scale), probes) + PENALTY * scale.square()

        adam([lots, scale], loss, self.steps, RATE * 3)
        with torch.no_grad():
            own = mean_loss(merged(lots.softmax(0), scale), held)
            uniform = mean_loss(merged(torch.full((TASKS,), 1 / TASKS), torch.ones(())), held)
            best = min(mean_loss(base + one, held) for one in moved)
            draws = torch.rand(32, TASKS, generator=chance).log().neg()
            random = torch.stack([mean_loss(merged(one / one.sum(), scale), held) for one in draws]).mean()
            return {"measures": {
                "over_uniform": float(own / uniform), "random_over_uniform": float(random / uniform),
                "over_best": float(own / best), "random_over_best": float(random / best),
                "scale": float(scale), "untrained_over_uniform": float(mean_loss(base, held) / uniform),
            }}  # fmt: skip

    def trained(self, base: torch.Tensor, told: Pairs, chance: torch.Generator) -> torch.Tensor:
        """The embedding [width, out] after training on pairs, from `base`."""
        weight = base.clone().requires_grad_(True)

        def loss() -> torch.Tensor:
            chosen = torch.randint(len(told[0]), (64,), generator=chance)
            return mean_loss(weight, [(told[0][chosen], told[1][chosen])])

        adam([weight], loss, self.steps, RATE)
        return weight.detach()


def pairs(mask: torch.Tensor, count: int, chance: torch.Generator) -> Pairs:
    """Pairs of texts [count, width] each, alike in the channels of a task's mask and of chance in all others."""
    first = torch.randn(count, WIDTH, generator=chance)
    alike = first + NOISE * torch.randn(count, WIDTH, generator=chance)
    return first, torch.where(mask, alike, torch.randn(count, WIDTH, generator=chance))


def mean_loss(weight: torch.Tensor, tasks: list[Pairs]) -> torch.Tensor:
    """The contrastive loss of an embedding, the mean over tasks."""
    found = []
    for one, other in tasks:
        scores = normalize(one @ weight, dim=1) @ normalize(other @ weight, dim=1).T / TEMPERATURE
        found.append(cross_entropy(scores, torch.arange(len(one))))
    return torch.stack(found).mean()
