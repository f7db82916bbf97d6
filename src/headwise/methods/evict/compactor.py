"""What stands out by itself and what its neighbours look at, weighed against each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import BlockSize, NonNegative, Weight
from headwise.methods.neighbours import AmongNeighbours
from headwise.methods.outliers import leverage, plain_leverage
from headwise.registry import Card, register


@register("evict", "compactor")
@dataclass(frozen=True)
class Compactor(AmongNeighbours):
    """Adds the z-scores of a key's leverage (`leverage`) and of the attention in its chunk (`non_causal`). No question
    is looked at.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    size: tokens of a chunk. blend: what leverage counts for, 1 as much as attention. directions: to how many random
    ones keys are reduced.
    """

    sinks: NonNegative = 8
    recent: NonNegative = 4
    blend: Weight = 0.35
    directions: BlockSize = 48

    needs = frozenset({"keys", "values", "queries", "notes", "rope"})
    card = Card(
        title="Compactor",
        paper="Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores, "
        "arXiv 2507.08143",
        frees_memory=True,
        chunking="approximate",
        forgets="tokens whose keys are like the others' and that their neighbours do not look at",
        deviations="`blend` is a number, where the released code takes the share that is dropped; keys that always "
        "stay count for no leverage, as there, but the latest of them attend in their chunk; the paper's choice of the "
        "share by context is not here; else as `leverage` and `non_causal`",
    )

    def score(self, view: View) -> torch.Tensor:
        """The sum [h, n], leverage `blend` times; standardised over the tokens that may leave, of all heads."""
        judged = ~self.protect(view)
        parts = (leverage(view, self.directions, judged), view.notes[..., 0].double())
        apart, among = (standard(part, part[judged]) for part in parts)
        return self.blend * apart + among

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        rows = view.positions.tolist()
        judged = torch.tensor([[self.sinks <= place < view.seen - self.recent for place in row] for row in rows])
        total = torch.zeros(view.positions.shape, dtype=torch.float64)
        parts = ((self.blend, plain_leverage(view, self.directions, judged)), (1.0, view.notes[..., 0].double()))
        for weight, part in parts:
            total += weight * standard(part, torch.tensor([float(x) for x in part[judged]], dtype=torch.float64))
        return total


def standard(x: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """x less the mean of `among [m]`, over its standard deviation; as it is where there are fewer than two."""
    return x if len(among) < 2 else (x - among.mean()) / among.std().clamp(min=1e-6)
