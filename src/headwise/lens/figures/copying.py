"""Heads that write the token that they attend to."""

from __future__ import annotations

import torch

from headwise.lens.losses import spread
from headwise.lens.scene import Scene
from headwise.lens.writes import Vocabulary
from headwise.lenses import LensCard, Progress, model_lens

MOST = 32  # different tokens of the text that are tried
BEST = 5  # of the tokens that a head writes, which count as written

CARD = LensCard(
    title="copying",
    tells="makes the very token that it attends to more likely, as its weights alone tell",
    range="0 to 1, the share of the text's tokens that are among the five that the head writes for them",
    paper="Inferring Functionality of Attention Heads from their Parameters (MAPS), arXiv 2412.11965, section 3",
    systems=(198,),
    deviations="the one relation 'is the same token', over tokens of the text; values by the layer's own norm",
)


@model_lens("copying", CARD, costly=True)
def copying(scene: Scene, progress: Progress) -> torch.Tensor:
    """By head, the share of tokens that it writes when it attends to them."""
    different = scene.text.ids[0].unique()
    tokens = different[spread(len(different), MOST)]
    vocabulary, layers = Vocabulary(scene.subject, tokens), scene.subject.geometry.layers
    found = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    heads = [(layer, head) for layer, one in enumerate(layers) for head in range(one.query_heads)]
    for done, (layer, head) in enumerate(heads):
        best = vocabulary.written((layer, head)).topk(BEST).indices.cpu()
        found[layer, head] = (best == tokens[:, None]).any(-1).float().mean()
        progress(done + 1, len(heads))
    return found
