"""What a text would lose without each head, as one backward pass tells."""

from __future__ import annotations

import torch

from headwise.calibrate.subject import model_of
from headwise.lens.interventions import scaled
from headwise.lens.losses import text_loss
from headwise.lens.scene import Scene
from headwise.lenses import LensCard, Progress, model_lens

CARD = LensCard(
    title="importance by gradient",
    tells="is needed for this text: without it the next token would be foretold worse, to first order",
    range="nats by token, of either sign: below 0 the text would be foretold better without the head",
    paper="Are Sixteen Heads Really Better than One?, arXiv 1905.10650, section 4.1",
    deviations="with its sign, of one text, where the paper takes absolute values by example",
)


@model_lens("importance", CARD)
def importance(scene: Scene, progress: Progress) -> torch.Tensor:
    """The loss by which a factor on each head's output, now 1, tells on the way to 0."""
    layers = scene.subject.geometry.layers
    factors = torch.ones(len(layers), max(one.query_heads for one in layers), requires_grad=True)
    by_head = {(i, j): factors[i, j] for i, one in enumerate(layers) for j in range(one.query_heads)}
    with torch.enable_grad(), scaled(model_of(scene.subject), by_head), scene.subject.recomputed():
        (gradient,) = torch.autograd.grad(text_loss(scene), factors)
    return -gradient
