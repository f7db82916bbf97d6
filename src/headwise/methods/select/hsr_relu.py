"""ReLU attention: keys count by how far their score lies above a threshold, and those below it not at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Tokens, Weighted
from headwise.knobs import NonNegative, PositiveWeight
from headwise.methods.half_space import HalfSpaced
from headwise.registry import Card, register


@register("select", "hsr_relu")
@dataclass(frozen=True)
class HalfSpaceReLU(HalfSpaced):
    """Weights are max(0, score - threshold) ** power over their sum in place of a softmax: what a half-space search
    leaves out has none, so that its result is that of all keys.

    budget: share or number of tokens that would pass if scores were Gaussian: it sets the threshold. sinks, recent:
    tokens that are looked at in any case; those below the threshold have no weight either.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 0
    power: PositiveWeight = 1.0

    needs = frozenset({"keys", "queries", "memory"})
    weighs = True
    card = Card(
        title="HSR-enhanced sparse attention, ReLU",
        paper="HSR-Enhanced Sparse Attention Acceleration, arXiv 2410.10165, section 4",
        systems=(190,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores tokens that score below the threshold; a query that no token "
        "reaches reads nothing",
        deviations="as `hsr`'s; models are trained with a softmax, which this takes the place of while decoding, from "
        "`pays_from` stored tokens on; prompts, and steps whose budget covers all that is stored, keep theirs",
    )

    def select(self, view: View) -> Weighted:
        """The tokens beyond the threshold of any query; a bias turns their scores into logarithms of weights."""
        entries, biases = self.reported(view), []
        for head, (own, least) in enumerate(zip(entries, self.least(view, self.told(view)), strict=True)):
            queries = view.queries[head].double()
            scores = view.scoring.capped(queries @ view.keys[head, own].double().T * view.scale)  # [g, t, m]
            bar = view.scoring.capped(least.view(*queries.shape[:2], 1) * view.scale)
            biases.append(((scores - bar).clamp(min=0).log() * self.power - scores).float())
        return Weighted(Tokens(entries), tuple(biases))

    def plain(self, view: View) -> Weighted:
        """The same with one key at a time and no tree; each bias from the weight that its key is to have."""
        entries, biases = self.plain_reported(view), []
        for h, (own, least) in enumerate(zip(entries, self.least(view, self.told(view)), strict=True)):
            bias = torch.full((*view.queries.shape[1:3], len(own)), -torch.inf)
            for row, (query, bar) in enumerate(zip(view.queries[h].double().flatten(0, 1), least, strict=True)):
                for place, key in enumerate(view.keys[h, own].double()):
                    score, over = float(query @ key) * view.scale, float(query @ key - bar) * view.scale
                    if over > 0:
                        bias.flatten(0, 1)[row, place] = math.log(over**self.power / math.exp(score))
            biases.append(bias)
        return Weighted(Tokens(entries), tuple(biases))
