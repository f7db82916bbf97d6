"""What a text loses without each head, by leaving it out."""

from __future__ import annotations

import torch

from headwise.calibrate.subject import model_of
from headwise.lens.interventions import ablated
from headwise.lens.losses import text_loss
from headwise.lens.scene import Scene
from headwise.lenses import LensCard, Progress, model_lens

CARD = LensCard(
    title="ablation",
    tells="is needed for this text: without it the next token is foretold worse",
    range="nats by token, of either sign: below 0 the text is foretold better without the head",
    paper="How Does Attention Work in Vision Transformers? A Visual Analytics Attempt, arXiv 2303.13731, on heads that "
    "matter",
    systems=(72,),
    deviations="importance by the loss of a language model's text; distances and clusters of patterns are not here",
)


@model_lens("ablation", CARD, costly=True)
@torch.no_grad()
def ablation(scene: Scene, progress: Progress) -> torch.Tensor:
    """The loss of the text without each head, less that with all of them."""
    layers, whole = scene.subject.geometry.layers, text_loss(scene)
    found = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    heads = [(layer, head) for layer, one in enumerate(layers) for head in range(one.query_heads)]
    for done, (layer, head) in enumerate(heads):
        with ablated(model_of(scene.subject), [(layer, head)]):
            found[layer, head] = text_loss(scene) - whole
        progress(done + 1, len(heads))
    return found
