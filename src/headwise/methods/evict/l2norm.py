"""Low key norms stay: tokens that attract attention tend to have short keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "l2norm")
@dataclass(frozen=True)
class L2Norm(Evict):
    """Keeps the tokens whose cached key has the lowest L2 norm; looks at keys only.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    skip_layers: first layers left whole (their norms say little about attention).
    """

    skip_layers: NonNegative = 2

    needs = frozenset({"keys"})
    card = Card(
        title="L2-norm KV compression",
        paper="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, arXiv 2406.11430",
        systems=(159,),
        frees_memory=True,
        chunking="exact",
        forgets="tokens with long keys, in all layers but the first `skip_layers`",
        deviations="protects sinks and recent tokens too (sinks=0, recent=0 is the paper's choice)",
    )

    def governs(self, layer: int) -> bool:
        """All layers but the first `skip_layers`."""
        return layer >= self.skip_layers

    def score(self, view: View) -> torch.Tensor:
        """Minus the norm [h, n] of each key."""
        return -view.keys.float().norm(dim=-1)

    def plain(self, view: View) -> torch.Tensor:
        """The same, channel by channel."""
        rows = [[-(sum(c * c for c in key) ** 0.5) for key in head] for head in view.keys.double().tolist()]
        return torch.tensor(rows, dtype=torch.float64)
