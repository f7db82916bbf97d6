"""What heads add to the logit of the token that follows."""

from __future__ import annotations

import torch

from headwise.lens.losses import spread
from headwise.lens.scene import Scene
from headwise.lens.stream import directions, stream
from headwise.lenses import LensCard, Progress, model_lens

MOST_PLACES = 128  # of the text, spread evenly

CARD = LensCard(
    title="answers",
    tells="adds to the logit of the very token that follows, by what it writes alone",
    range="logits above the mean logit, of either sign: below 0 it speaks against what follows",
    paper="Does Circuit Analysis Interpretability Scale? Evidence from Multiple Choice Capabilities in Chinchilla, "
    "arXiv 2307.09458, on logit attribution",
    systems=(82,),
    deviations="of the text's own tokens; norms behind attention, as in Gemma's layers, are left out",
)


@model_lens("answers", CARD)
def answers(scene: Scene, progress: Progress) -> torch.Tensor:
    """The product of what each head adds with the direction of the token that follows, the mean over the text."""
    subject, ids = scene.subject, scene.text.ids
    places = spread(scene.text.tokens - 1, MOST_PLACES)
    found = stream(subject, ids, places)
    toward = directions(subject, found, ids[0, places + 1])
    layers = subject.geometry.layers
    told = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    for layer in found.read:
        added = torch.einsum("hpw,pw->h", found.added(layer), toward) / len(places)
        told[layer, : len(added)] = added.cpu()
    return told
