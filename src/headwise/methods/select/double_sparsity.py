"""Double Sparsity: scores from the few channels that matter most to a head, exact attention on the best tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Causal, Where
from headwise.knobs import NonNegative, PositiveShare
from headwise.methods.select import Summarised
from headwise.registry import CalibrationTensor, Card, register


@register("select", "double_sparsity")
@dataclass(frozen=True)
class DoubleSparsity(Summarised):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    channels: share of the key's channels that scores are computed from: a sixteenth in the paper, a quarter or half in
    its code; SmolLM2 and Gemma-3 need half (row 256 of the claims). skip_layers: first layers that read everything.
    """

    channels: PositiveShare = 0.0625
    skip_layers: NonNegative = 2

    needs = frozenset({"keys", "queries", "summaries", "memory", "calibration"})
    noted = {"strength": "d"}
    calibrates = {"strength": CalibrationTensor("d", "mean |q_c| times mean |k_c| of each channel", "keys")}
    card = Card(
        title="Double Sparsity",
        paper="Post-Training Sparse Attention with Double Sparsity, arXiv 2408.07092, section 3",
        systems=(256,),
        phase="decode",
        query_aware=True,
        calibrated=True,
        forgets="nothing for good: each step ignores tokens that score low in the chosen channels",
        deviations="without a calibration (`strength`, mean |q_c k_c|) channels are ranked by the stored keys and the "
        "queries of the first step; one choice per KV head, by the mean weight over its query group; labels as wide as "
        "keys, not of 4 bits",
    )

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """How much each channel matters to each head, measured once."""
        if "strength" in view.calibration or view.memory.recall("strength") is not None:
            return {}
        return {"strength": tuple(self._strength(view))}

    def _strength(self, view: View) -> torch.Tensor:
        """Mean of |q_c| times mean of |k_c|, [h, d]."""
        return view.queries.float().abs().mean((1, 2)) * view.keys.float().abs().mean(1)

    def _channels(self, view: View) -> list[torch.Tensor]:
        """The channels of each head that scores are computed from, ascending."""
        noted = view.memory.recall("strength")
        strength = view.calibration.get("strength", torch.stack(noted) if noted else None)
        strength = self._strength(view) if strength is None else strength.float()
        wanted = max(1, round(self.channels * strength.shape[1]))
        return list(choose(strength, wanted, torch.zeros_like(strength, dtype=torch.bool)))

    def select(self, view: View) -> Where:
        """The tokens of largest weight by the chosen channels."""
        if view.layer < self.skip_layers:
            return Causal()
        queries = self._labels(view, view.queries.flatten(1, 2)).unflatten(1, view.queries.shape[1:3])
        return self.best(view, column_mass(queries, view.summaries, Causal(), view.scoring))

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """The label cache: keys in the chosen channels, [h, n, r]."""
        return self._labels(view, blocks[:, :, 0])

    def _labels(self, view: View, x: torch.Tensor) -> torch.Tensor:
        """The chosen channels of x [h, m, d], filled up with zeros to the 16 that kernels read at once."""
        channels = torch.stack(self._channels(view))
        return pad(x.gather(2, channels[:, None].expand(-1, x.shape[1], -1)), (0, -channels.shape[1] % 16))

    def plain(self, view: View) -> Where:
        """The same with one softmax row at a time."""
        if view.layer < self.skip_layers:
            return Causal()
        heads, group, t, d = view.queries.shape
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        noted = view.calibration.get("strength", view.memory.recall("strength"))
        for h in range(heads):
            strength = [float(view.queries[h, ..., c].abs().mean() * view.keys[h, :, c].abs().mean()) for c in range(d)]
            strength = strength if noted is None else noted[h].tolist()
            best = sorted(range(d), key=lambda c: -strength[c])[: max(1, round(self.channels * d))]
            for g in range(group):
                for i in range(t):
                    scores = view.keys[h][:, best].double() @ view.queries[h, g, i, best].double() * view.scale
                    later = view.positions[h] > view.query_positions[i]
                    weights[h] += scores.masked_fill(later, -torch.inf).softmax(0) / (group * t)
        return self.best(view, weights)
