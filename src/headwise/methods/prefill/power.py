"""PowerAttention: sinks, a window, and the tokens at power-of-two distances, so that reach doubles with every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, VerticalSlash, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "power")
@dataclass(frozen=True)
class Power(Prefill):
    """first: first tokens that every query reads. nearest: latest tokens that a query reads, itself included."""

    first: NonNegative = 4
    nearest: Positive = 256

    card = Card(
        title="PowerAttention",
        paper="PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention, 2503.03588",
        systems=(301,),
        phase="prefill",
        chunking="exact",
        forgets="nothing is dropped, but between the window and a power of two nothing is read directly",
        deviations="single tokens at the powers of two, where the paper's kernel reads whole blocks; the model is used "
        "as it is, not trained on with the pattern",
    )

    def where(self, view: View) -> Where:
        """Columns of the first tokens; diagonals below `nearest` and at powers of two."""
        place = torch.arange(view.count, device=view.positions.device)
        power = (place & (place - 1)) == 0
        heads = len(view.heads)
        return VerticalSlash((place[: self.first],) * heads, (place[(place < self.nearest) | power],) * heads)

    def plain(self, view: View) -> Where:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        t, n = view.queries.shape[2], view.count
        powers = {2**e for e in range(40)}
        rows = [[j < self.first or i - j < self.nearest or i - j in powers for j in range(n)] for i in range(n - t, n)]
        return Blocks.from_map(1, torch.tensor([rows] * len(view.heads)))
