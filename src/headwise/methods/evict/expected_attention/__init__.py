"""Attention that queries yet to come will pay, expected under a Gaussian fitted to the queries at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive, Weight
from headwise.methods.evict import Evict
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "expected_attention")
@dataclass(frozen=True)
class ExpectedAttention(Evict):
    """Scores a key by E[exp(q.k * scale)] over future queries q, and weighs it by the length of its value.

    Calibrated, mean and covariance of the queries are those of the model on other texts (`query_statistics`), and no
    query of the prompt is looked at; else those of the queries at hand.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    future: next positions, in tokens, over which the rotation of a future query is averaged.
    epsilon: attention granted to every token, so that a long value counts even where little attention is expected.
    memory: last queries kept across decode steps for the statistics; a longer prompt chunk gives all of its own.
    """

    future: Positive = 512
    epsilon: Weight = 0.01
    memory: Positive = 128

    needs = frozenset({"keys", "values", "queries", "rope", "calibration"})
    calibrates = {
        "mean": CalibrationTensor("g d", "the mean of the queries before rotation", "query_statistics"),
        "covariance": CalibrationTensor("g d d", "their covariance", "query_statistics"),
    }
    card = Card(
        title="Expected Attention",
        paper="Expected Attention: KV Cache Compression by Estimating Attention from Future Queries, arXiv 2510.00636",
        systems=(234,),
        query_aware=True,
        calibrated=True,
        frees_memory=True,
        chunking="approximate",
        forgets="tokens that queries like the past ones would not attend to",
        deviations="mean and covariance come from the queries themselves, not from hidden states and W_Q (the same "
        "numbers for a linear projection); weighs by the norm of v where the paper has the norm of W_o v, as its "
        "released code does too; that code's default epsilon is 0, which keeps other tokens (63 % the same); with "
        "a calibration, whose texts are headwise's own and not BookSum, it is not query-aware",
    )

    @property
    def last_queries(self) -> int:
        """The last `memory` queries."""
        return self.memory

    def raw_score(self, view: View) -> torch.Tensor:
        """Log of the expected exponential [h, g, n]: mu.k * scale + k^T Sigma k * scale^2 / 2."""
        turn = None if view.rope is None else view.rope.mean(view.seen, self.future, view.keys.shape[-1])
        return torch.cat([self._raw_score(view.subset((head,)), turn) for head in range(len(view.heads))])

    def _statistics(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean [h, g, d] and covariance [h, g, d, d] of the queries before rotation."""
        if {"mean", "covariance"} <= view.calibration.keys():
            return view.calibration["mean"].float(), view.calibration["covariance"].float()
        queries, positions = view.queries.float(), view.query_positions
        if bool((positions >= self.sinks).any()):
            queries, positions = queries[:, :, positions >= self.sinks], positions[positions >= self.sinks]
        if view.rope is not None:
            queries = view.rope.unrotate(queries, positions)
        mean = queries.mean(2)
        centred = queries - mean[:, :, None]
        return mean, centred.mT @ centred / queries.shape[2]

    def _raw_score(self, view: View, turn: torch.Tensor | None) -> torch.Tensor:
        mean, covariance = self._statistics(view)
        if turn is not None:
            turn = turn.to(mean.device)
            mean, covariance = mean @ turn.T, turn @ covariance @ turn.T
        keys = view.keys.float() * view.scale
        spread = torch.stack([(keys @ one * keys).sum(-1) for one in covariance.unbind(1)], dim=1)
        return mean @ keys.mT + spread / 2

    def score(self, view: View) -> torch.Tensor:
        """Expected attention [h, n], averaged over the query group, times the norm of the value."""
        raw = self.raw_score(view)
        # Sinks would take most of every softmax; they are protected anyway.
        raw = torch.where((view.positions < self.sinks)[:, None], torch.finfo(raw.dtype).min, raw)
        return (raw.softmax(-1).mean(1) + self.epsilon) * view.values.float().norm(dim=-1)

    def plain(self, view: View) -> torch.Tensor:
        """The same with one query, one future position and one head at a time."""
        usable = [i for i, p in enumerate(view.query_positions.tolist()) if p >= self.sinks]
        usable = usable or list(range(len(view.query_positions)))
        turn, rows = _plain_turn(view, self.future), []
        for h in range(view.keys.shape[0]):
            keys, total = view.keys[h].double(), torch.zeros(view.keys.shape[1], dtype=torch.float64)
            for g in range(view.queries.shape[1]):
                queries = [view.queries[h, g, i].double() for i in usable]
                if view.rope is not None:
                    places = view.query_positions[usable]
                    queries = [view.rope.unrotate(q, p) for q, p in zip(queries, places, strict=True)]
                mean = torch.stack(queries).mean(0)
                covariance = torch.stack([torch.outer(q - mean, q - mean) for q in queries]).mean(0)
                if "mean" in view.calibration and "covariance" in view.calibration:
                    mean, covariance = (view.calibration[name][h, g].double() for name in ("mean", "covariance"))
                mean, covariance = turn @ mean, turn @ covariance @ turn.T
                raw = torch.stack([mean @ k * view.scale + k @ covariance @ k * view.scale**2 / 2 for k in keys])
                raw[view.positions[h] < self.sinks] = torch.finfo(torch.float32).min
                total += raw.softmax(0)
            rows.append((total / view.queries.shape[1] + self.epsilon) * view.values[h].double().norm(dim=-1))
        return torch.stack(rows)


def _plain_turn(view: View, future: int) -> torch.Tensor:
    unit = torch.eye(view.keys.shape[-1])
    if view.rope is None:
        return unit.double()
    return torch.stack([view.rope.rotate(unit, torch.tensor(view.seen + i)).double() for i in range(future)]).mean(0).T
