"""Loki: scores in the few directions in which a head's keys vary most, exact attention on the best tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.forms import Causal, Tokens
from headwise.knobs import PositiveShare
from headwise.methods.select import Summarised
from headwise.registry import CalibrationTensor, Card, register


@register("select", "loki")
@dataclass(frozen=True)
class Loki(Summarised):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    channels: share of the key width that scores are computed in, 0 < x <= 1.
    """

    channels: PositiveShare = 0.25

    needs = frozenset({"keys", "queries", "summaries", "memory", "calibration"})
    noted = {"basis": "d d"}
    calibrates = {"basis": CalibrationTensor("d d", "principal directions of keys, the largest variance first", "keys")}
    card = Card(
        title="Loki",
        paper="Loki: Low-Rank Keys for Efficient Sparse Attention, arXiv 2406.02542, algorithm 1",
        systems=(200,),
        phase="decode",
        query_aware=True,
        calibrated=True,
        forgets="nothing for good: each step ignores tokens that score low in the leading directions",
        deviations="without a calibration (`basis`, keys after rotation) the basis is that of the keys stored at the "
        "first new token; keys stay stored unrotated into the basis; one choice per KV head, by the mean weight over "
        "its query group",
    )

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """The basis of each head, found once."""
        if "basis" in view.calibration or view.memory.recall("basis") is not None:
            return {}
        return {"basis": tuple(_basis(view.keys))}

    def _directions(self, view: View) -> torch.Tensor:
        """Orthonormal directions [h, d, r], the leading ones of each head."""
        noted = view.memory.recall("basis")
        basis = view.calibration.get("basis", torch.stack(noted) if noted else None)
        basis = _basis(view.keys) if basis is None else basis.float()
        return basis[:, :, : max(1, round(self.channels * basis.shape[2]))]

    def select(self, view: View) -> Tokens:
        """The tokens of largest weight in the leading directions."""
        queries = torch.einsum("hgtd,hdr->hgtr", view.queries.float(), self._directions(view))
        projected = queries.to(view.summaries.dtype)
        return self.best(view, column_mass(projected, view.summaries, Causal(), view.scoring))

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """Keys in the leading directions: [h, n, r]."""
        return (blocks[:, :, 0].float() @ self._directions(view)).to(blocks.dtype)

    def plain(self, view: View) -> Tokens:
        """The same with one softmax row at a time, in the noted basis or one found by singular values."""
        heads, group, t, d = view.queries.shape
        noted = view.memory.recall("basis")
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        for h in range(heads):
            keys = view.keys[h].double()
            wanted = max(1, round(self.channels * d))
            spread = (keys - keys.mean(0)).T @ (keys - keys.mean(0))
            basis = (torch.linalg.svd(spread)[0] if noted is None else noted[h].double())[:, :wanted]
            for g in range(group):
                for i in range(t):
                    scores = (keys @ basis) @ (view.queries[h, g, i].double() @ basis) * view.scale
                    later = view.positions[h] > view.query_positions[i]
                    weights[h] += scores.masked_fill(later, -torch.inf).softmax(0) / (group * t)
        return self.best(view, weights)


def _basis(keys: torch.Tensor) -> torch.Tensor:
    """Principal directions of keys [h, n, d], as columns [h, d, d], the one of largest variance first."""
    keys = keys.double() - keys.double().mean(1, keepdim=True)
    spread = keys.mT @ keys
    return torch.linalg.eigh(torch.nan_to_num(spread))[1].flip(-1).float()
