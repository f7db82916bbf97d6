"""Which heads the next word rests on."""

from __future__ import annotations

import torch

from headwise.lens.scene import Scene
from headwise.lens.ships import first_words, heads_of, ships
from headwise.lenses import LensCard, Progress, model_lens

MOST_TOKENS = 512  # of the text, its last, as it is read once for every head

CARD = LensCard(
    title="ships",
    tells="decides what is said after this text: looking at all tokens alike, it leads to another next token",
    range="nats, 0 where nothing changes: the divergence of the next token's distribution",
    paper="On the Role of Attention Heads in Large Language Model Safety, arXiv 2410.13708, section 3",
    systems=(85,),
    deviations="of any text that is given, which for the paper's use is a prompt that the model refuses; queries alone "
    "are turned to nothing; Sahara, which grows a group of heads, is `lens/sahara.py`",
)


@model_lens("ships", CARD, costly=True)
def next_word(scene: Scene, progress: Progress) -> torch.Tensor:
    """The divergence without each head."""
    layers, prompts = scene.subject.geometry.layers, [scene.text.ids[:, -MOST_TOKENS:]]
    whole, heads = first_words(scene.subject, prompts), heads_of(scene.subject)
    told = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    for done, head in enumerate(heads):
        told[head] = ships(whole, first_words(scene.subject, prompts, [head]))
        progress(done + 1, len(heads))
    return told
