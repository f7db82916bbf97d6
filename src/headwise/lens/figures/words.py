"""How far what a head writes is a sum of few tokens."""

from __future__ import annotations

import torch

from headwise.calibrate.subject import model_of
from headwise.lens.losses import spread
from headwise.lens.pursuit import pursued
from headwise.lens.scene import Scene
from headwise.lens.stream import stream
from headwise.lenses import LensCard, Progress, model_lens

MOST_PLACES, ATOMS = 32, 4

CARD = LensCard(
    title="words",
    tells="writes of this text what four tokens tell: it speaks in words of one kind",
    range="0 to 1, the share of what it adds, in squares, that the best four rows of the output matrix account for",
    paper="Head Pursuit: Probing Attention Specialization in Multimodal Transformers, arXiv 2510.21518, on pursuit",
    systems=(187,),
    deviations="products with a token count where they are positive",
)


@model_lens("words", CARD, costly=True)
@torch.no_grad()
def words(scene: Scene, progress: Progress) -> torch.Tensor:
    """The explained share of each head's outputs."""
    subject = scene.subject
    dictionary = model_of(subject).get_output_embeddings().weight.float()
    found = stream(subject, scene.text.ids, spread(scene.text.tokens, MOST_PLACES))
    layers = subject.geometry.layers
    told = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    for done, layer in enumerate(found.read):
        for head, samples in enumerate(found.added(layer)):
            told[layer, head] = pursued(samples, dictionary, ATOMS).explained[-1]
        progress(done + 1, len(found.read))
    return told
