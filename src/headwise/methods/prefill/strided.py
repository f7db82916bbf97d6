"""Strided: the latest tokens, and beyond them one token in every `stride`, counted back from the query."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, VerticalSlash, Where
from headwise.knobs import Positive
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "strided")
@dataclass(frozen=True)
class Strided(Prefill):
    """stride: latest tokens that a query reads, and the distance between those it reads beyond them."""

    stride: Positive = 128

    card = Card(
        title="Sparse Transformer: strided pattern",
        paper="Generating Long Sequences with Sparse Transformers, arXiv 1904.10509, section 4.3",
        phase="prefill",
        chunking="exact",
        forgets="nothing is dropped, but most of the prompt beyond the latest tokens is not read",
        deviations="one head reads both parts of the pattern, which the paper gives to two heads",
    )

    def where(self, view: View) -> Where:
        """Diagonals: every distance below `stride`, and every multiple of it."""
        distance = torch.arange(view.count, device=view.positions.device)
        own = distance[(distance < self.stride) | (distance % self.stride == 0)]
        heads = len(view.heads)
        return VerticalSlash((own[:0],) * heads, (own,) * heads)

    def plain(self, view: View) -> Where:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        t, n, s = view.queries.shape[2], view.count, self.stride
        rows = [[i - j < s or (i - j) % s == 0 for j in range(n)] for i in range(n - t, n)]
        return Blocks.from_map(1, torch.tensor([rows] * len(view.heads)))
