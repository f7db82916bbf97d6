"""Keys that the others cannot stand in for stay: those with much statistical leverage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import BlockSize
from headwise.methods.evict import Evict
from headwise.methods.outliers import leverage, plain_leverage
from headwise.registry import Card, register


@register("evict", "leverage")
@dataclass(frozen=True)
class LeverageScore(Evict):
    """Keeps the keys, before rotation, with the highest leverage: how much of a key no mixture of the others gives.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    directions: to how many random ones keys are reduced first; as many as they have channels: not at all.
    """

    directions: BlockSize = 48

    needs = frozenset({"keys", "rope"})
    card = Card(
        title="Leverage scores",
        paper="Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores, "
        "arXiv 2507.08143, one half of its score",
        frees_memory=True,
        chunking="approximate",
        forgets="tokens whose keys are like mixtures of the others",
        deviations="protects sinks and recent tokens; the heads of a layer share their random directions; by other "
        "draws than those of NVIDIA's kvpress 88 % of the tokens are the same, and by none (`directions` at the width "
        "of a key) all; no z-score, which changes no order within a head",
    )

    def score(self, view: View) -> torch.Tensor:
        """Leverage [h, n] of each key."""
        return leverage(view, self.directions)

    def plain(self, view: View) -> torch.Tensor:
        """The same, key by key."""
        return plain_leverage(view, self.directions)
