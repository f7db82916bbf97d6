"""Dilated window: the nearest tokens, and beyond them a window with gaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, VerticalSlash, Where
from headwise.knobs import Positive
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "dilated")
@dataclass(frozen=True)
class Dilated(Prefill):
    """nearest: latest tokens that a query reads. gap: distance between those that it reads beyond them.

    reach: how far back the window with gaps goes, in tokens.
    """

    nearest: Positive = 256
    gap: Positive = 4
    reach: Positive = 4096

    card = Card(
        title="Longformer: dilated window",
        paper="Longformer: The Long-Document Transformer, arXiv 2004.05150, section 3.1",
        phase="prefill",
        chunking="exact",
        forgets="nothing is dropped, but what lies in the gaps or beyond the reach is not read",
        deviations="a dense window of the nearest tokens is part of every head, which the paper gives to lower layers",
    )

    def where(self, view: View) -> Where:
        """Diagonals: every distance below `nearest`, and the multiples of `gap` below `reach`."""
        distance = torch.arange(view.count, device=view.positions.device)
        own = distance[(distance < self.nearest) | ((distance % self.gap == 0) & (distance < self.reach))]
        heads = len(view.heads)
        return VerticalSlash((own[:0],) * heads, (own,) * heads)

    def plain(self, view: View) -> Where:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        t, n = view.queries.shape[2], view.count

        def reads(distance: int) -> bool:
            return distance < self.nearest or (distance % self.gap == 0 and distance < self.reach)

        rows = [[reads(i - j) for j in range(n)] for i in range(n - t, n)]
        return Blocks.from_map(1, torch.tensor([rows] * len(view.heads)))
