"""Attention without the mask: a token is worth what its neighbours, later ones too, look at it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.methods.neighbours import AmongNeighbours
from headwise.registry import Card, register


@register("evict", "non_causal")
@dataclass(frozen=True)
class NonCausalAttention(AmongNeighbours):
    """The tokens of a chunk attend to all of it, before and after; a token's score is what it gets, times the length of
    its value, smoothed over three tokens. It is found once, when the token comes.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    size: tokens of a chunk, counted from the last sink.
    """

    needs = frozenset({"keys", "values", "queries", "notes"})
    card = Card(
        title="Non-causal attention",
        paper="Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores, "
        "arXiv 2507.08143, one half of its score",
        frees_memory=True,
        chunking="approximate",
        forgets="tokens that their neighbours do not look at",
        deviations="protects sinks and recent tokens; the last chunk holds real tokens alone, where the released code "
        "fills it up with empty ones that take attention and give it; products are not scaled, as there; tokens that "
        "the model writes are scored by the chunks that are there when they are first judged",
    )

    def score(self, view: View) -> torch.Tensor:
        """What was noted [h, n]."""
        return view.notes[..., 0]

    def plain(self, view: View) -> torch.Tensor:
        """The same, one by one."""
        return torch.tensor([[float(note[0]) for note in row] for row in view.notes.tolist()])
