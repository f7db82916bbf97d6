"""SALE: every score estimated from 4 bits, blocks read where one of them weighs something beside sinks and window."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.byproducts import estimated_maxima, row_lse
from headwise.attention.view import View
from headwise.forms import Blocks, Codes, Where
from headwise.knobs import NonNegative, Positive, Share
from headwise.methods.blocks import Grid
from headwise.methods.prefill import Prefill
from headwise.registry import CalibrationTensor, Card, register

FOUR_BITS = 7  # the largest code, as -7 to 7 are symmetric


@register("prefill", "sale")
@dataclass(frozen=True)
class Sale(Prefill):
    """threshold: least weight, relative to the sum over first block and window, for which a block is read; 0 reads all.

    size: tokens per block. local: blocks read before a query's own, always, as is the first.
    """

    threshold: Share = 0.004
    size: Positive = 32
    local: NonNegative = 4

    needs = frozenset({"keys", "queries", "calibration"})
    calibrates = {"threshold": CalibrationTensor("", "the threshold of the head", "sale")}
    card = Card(
        title="SALE",
        paper="SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling, arXiv "
        "2505.24179, section 4",
        systems=(29,),
        phase="prefill",
        query_aware=True,
        calibrated=True,
        chunking="approximate",
        forgets="nothing is dropped, but blocks of the prompt without a large enough estimated weight are not read",
        deviations="without a calibration (`threshold`, one per KV head) all heads have the threshold of the recipe; "
        "one choice per KV head, which reads what any query head of its group needs; blocks of 32 queries, not 64; one "
        "scale per query and per key; queries are not centred; without a processor's products of bytes (VNNI) the "
        "estimate costs about half of dense attention, with them a quarter",
    )

    def where(self, view: View) -> Where:
        """Blocks by their largest estimated score, less the exact log-sum-exp of first block and window."""
        keys, queries = view.keys, view.queries
        grid = Grid.of(self.size, queries.shape[2], view.count, keys.device)
        sure = (grid.near(self.local) | (grid.keys == 0)).expand(len(keys), -1, -1)
        beside = row_lse(queries, keys, grid.blocks(sure), view.scoring)
        short = Codes.of(keys, FOUR_BITS)
        best = estimated_maxima(queries, short, view.scoring, block=self.size, below=beside)
        return grid.blocks((best > self._thresholds(view).log()[:, None, None]) | sure)

    def _thresholds(self, view: View) -> torch.Tensor:
        """One per head [h]."""
        alike = torch.full((len(view.heads),), self.threshold, device=view.positions.device)
        return view.calibration.get("threshold", alike).float()

    def plain(self, view: View) -> Where:
        """The same one query at a time."""
        (heads, group, t, _), n, size = view.queries.shape, view.count, self.size
        seen = torch.zeros(heads, -(-t // size), -(-n // size), dtype=torch.bool)
        for h in range(heads):
            keys, middle = view.keys[h].double(), view.keys[h].float().mean(0)
            least = float(self._thresholds(view)[h])
            small = torch.stack([_four_bits(key - middle) for key in view.keys[h].float()])
            for i in range(t):
                first, end = n - t + i // size * size, n - t + i + 1
                blocks = torch.arange(end) // size
                sure = (blocks == 0) | (blocks >= first // size - self.local)
                seen[h, i // size, blocks[sure]] = True
                near = keys[:end][sure]
                for g in range(group):
                    query = view.queries[h, g, i]
                    beside = (near @ query.double() * view.scale).logsumexp(0)
                    guess = small[:end] @ _four_bits(query.float()) + query.double() @ middle.double()
                    weights = (guess * view.scale - beside).exp()
                    big = (weights > least).nonzero()[:, 0]
                    seen[h, i // size, big // size] = True
        return Blocks.from_map(size, seen)


def _four_bits(x: torch.Tensor) -> torch.Tensor:
    """A vector [d] rounded to whole multiples, -7 to 7, of a seventh of its largest channel."""
    step = x.abs().max() / 7
    return (x / step.clamp(min=1e-30)).round().double() * step
