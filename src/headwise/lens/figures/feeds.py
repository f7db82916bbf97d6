"""Heads that later ones read by a narrow channel."""

from __future__ import annotations

import torch

from headwise.lens.channels import Circuits, strongest
from headwise.lens.scene import Scene
from headwise.lenses import LensCard, Progress, model_lens

CARD = LensCard(
    title="feeds",
    tells="writes a direction that some later head's scores read before all others, as weights alone tell",
    range="0 to 1, the share of the later head's query-key matrix, in its norm, that one channel of the head meets",
    paper="Talking Heads: Understanding Inter-layer Communication in Transformer Language Models, arXiv 2406.09519, "
    "section 3",
    systems=(77,),
    deviations="by keys alone; norms of layers count with their weights, so that channels are as the reader sees them",
)


@model_lens("feeds", CARD, costly=True)
def feeds(scene: Scene, progress: Progress) -> torch.Tensor:
    """The highest composition score of each head with any later one."""
    layers = scene.subject.geometry.layers
    told = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    circuits = Circuits(scene.subject)
    for head in circuits.heads:
        told[head] = 0.0
    for (head, _), (score, _) in strongest(circuits).items():
        told[head] = max(float(told[head]), score)
    return told
