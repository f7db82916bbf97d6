"""Half of what stays is what the last queries attend to; the other half is chosen by what it does to the output too."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.knobs import Odd, Positive, PositiveWeight, Share
from headwise.methods.evict import Evict
from headwise.methods.window_votes import plain_window_votes, window_votes
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "critical_kv")
@dataclass(frozen=True)
class CriticalKV(Evict):
    """SnapKV's votes choose the first part of the tokens. The rest are those with the highest product of votes and the
    length (sum of magnitudes) of the value as the layer's output projection turns it, averaged over the query group.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that vote, in tokens; their own tokens stay. kernel: tokens that the smoothing averages, odd.
    sure: share of the budget that the votes alone choose. epsilon: vote granted to every token.
    """

    window: Positive = 32
    kernel: Odd = 5
    sure: Share = 0.5
    epsilon: PositiveWeight = 1e-4

    needs = frozenset({"keys", "values", "queries", "calibration"})
    calibrates = {
        "output": CalibrationTensor("g e n", "channels of a head's output projection, spread evenly", "outputs"),
    }
    card = Card(
        title="CriticalKV",
        paper="Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective, arXiv 2502.03805",
        query_aware=True,
        calibrated=True,
        frees_memory=True,
        chunking="approximate",
        forgets="prompt tokens that the last queries did not attend to, of equals those with small outputs",
        deviations="the votes are SnapKV's alone, where the released code takes any; the output projection is measured "
        "(`headwise calibrate`), 256 channels of its output at most (all of them keep what NVIDIA's kvpress "
        "keeps); without a calibration the value's own length counts (91 %); with `| ada` heads "
        "compete as CriticalAdaKV's do, by votes, but each is sure of as many (82 % the same)",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def score(self, view: View) -> torch.Tensor:
        """Votes [h, n] of what they alone choose; of the rest the product, as a share of the head's largest, times the
        highest vote among them, so that heads compare by votes. +inf for the voters' own tokens."""
        votes, lengths = window_votes(view, self.window, self.kernel), self._lengths(view)
        count = int(self.sure * self.tokens_of(view.seen))
        sure = choose_mask(votes, min(count, view.count), self.protect(view))
        granted = votes.masked_fill(votes.isinf(), 0) + self.epsilon
        product = (granted * lengths).masked_fill(sure, 0)
        share = product / product.amax(1, keepdim=True).clamp(min=1e-30)
        rest = share * granted.masked_fill(sure, 0).amax(1, keepdim=True)
        return (
            torch.where(sure, granted, rest).masked_fill(votes.isinf(), torch.inf) + 0 * lengths
        )  # no number stays none

    def _lengths(self, view: View) -> torch.Tensor:
        """The mean magnitude [h, n] of what each value becomes in the output's channels; without a calibration, of the
        value's own."""
        values = view.values.float()
        if "output" not in view.calibration:
            return values.abs().mean(-1)
        turns = view.calibration["output"].float()  # [h, g, e, n]
        found = torch.zeros(values.shape[:2], device=values.device)
        for turn in turns.unbind(1):
            found += torch.stack([(own @ by).abs().mean(-1) for own, by in zip(values, turn, strict=True)])
        return found / turns.shape[1]

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        votes, rows = plain_window_votes(view, self.window, self.kernel).double(), []
        count, protect = int(self.sure * self.tokens_of(view.seen)), self.protect(view).tolist()
        for h, own in enumerate(votes.tolist()):
            ranked = sorted(
                range(view.count), key=list(zip(protect[h], own, range(view.count), strict=True)).__getitem__
            )
            rest = ranked[: min(view.count - count, view.count - sum(protect[h]))] if count < view.count else []
            granted = [(0 if math.isinf(vote) else vote) + self.epsilon for vote in own]
            product = {j: granted[j] * self._length(view, h, j) for j in rest}
            best = max((granted[j] for j in rest), default=0.0)
            row = [math.inf if math.isinf(vote) else granted[j] for j, vote in enumerate(own)]
            for j in rest:
                row[j] = math.inf if math.isinf(own[j]) else best * product[j] / max(*product.values(), 1e-30)
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float64)

    def _length(self, view: View, head: int, entry: int) -> float:
        """`_lengths` of one token."""
        value = view.values[head, entry].double()
        turns = view.calibration["output"][head].double() if "output" in view.calibration else [None]
        turned = [value if turn is None else value @ turn for turn in turns]
        return sum(float(x.abs().mean()) for x in turned) / len(turned)
