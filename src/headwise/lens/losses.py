"""How well a model foretells a text, which is what it loses without a head."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from headwise.lens.scene import Scene
from headwise.observe import LayerAttention

MOST_TOKENS = 2048  # of a text, its first, as gradients pass through all of them
MOST_PLACES = 256  # whose next token counts, spread evenly: logits of large vocabularies take gigabytes else


def token_losses(scene: Scene, places: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood [places], in nats, of the token that follows each of `places`, with gradients."""
    ids = scene.text.ids[:, : int(places.max()) + 2].to(scene.subject.device)
    logits = scene.subject.logits(ids, places, LayerAttention.full)
    return cross_entropy(logits.float(), ids[0, places + 1], reduction="none")


def text_loss(scene: Scene) -> torch.Tensor:
    """The mean of these over the text, of places spread evenly, as a number with gradients."""
    return token_losses(scene, spread(min(scene.text.tokens, MOST_TOKENS) - 1, MOST_PLACES)).mean()


def spread(count: int, most: int) -> torch.Tensor:
    """At most so many of the places 0 to count - 1, spread evenly, the last among them."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
