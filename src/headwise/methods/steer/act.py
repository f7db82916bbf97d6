"""Tokens that a head attends to out of habit give most of their weight back to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.forms import Edit, Where, moved
from headwise.forms.where import BLOCK_ELEMENTS
from headwise.knobs import Share
from headwise.methods.steer import Steer
from headwise.registry import Card, register


@dataclass(frozen=True, eq=False)
class Calibrated(Edit):
    """Hidden sinks, bool `[h, g, n]`, keep a share of their weight; the others take the rest as they have it."""

    hidden: Tensor
    keep: float

    def change(self, s: Tensor, visible: Tensor) -> Tensor:
        hidden = self.hidden[:, :, None, : s.shape[-1]]
        return moved(s, visible, hidden, ~hidden, self.keep)


@register("steer", "act")
@dataclass(frozen=True)
class Act(Steer):
    """Hidden sinks are tokens that get more than `threshold` of a head's attention, averaged over the prompt's queries
    that see them; the first such token is the open sink and stays. Of the others' weight a share `beta` remains.

    beta: 0.4 is the paper's; 1 changes nothing. threshold: 0.1 in the released code. heads: those to calibrate, which
    the paper chooses by the accuracy when each is calibrated alone; all heads are known to lose.
    """

    beta: Share = 0.4
    threshold: Share = 0.1

    at_rest = {"beta": 1.0}
    needs = frozenset({"queries", "keys", "memory"})
    noted = {"hidden": "int s", "whose": "s g"}
    card = Card(
        title="ACT, attention calibration",
        paper="Unveiling and Harnessing Hidden Attention Sinks, ICML 2024, arXiv 2406.15765, section 4",
        systems=(21,),
        query_aware=True,
        chunking="approximate",
        forgets="nothing, but hidden sinks are read less",
        deviations="a prompt in pieces has its sinks found piece by piece; new tokens keep the prompt's sinks, where "
        "the released code reads all anew; all heads unless some are named, as the paper's lists are of its models; a "
        "row that sees no other key stays as it is",
    )

    def remember(self, view: View, where: Where) -> Mapping[str, Sequence[Tensor]]:
        """Positions [s] of what any query head calls a hidden sink, and whose it is, float32 [s, g]. The first token is
        always among them, as nobody's."""
        found = self._found(view, where)
        noted = view.memory.recall("hidden"), view.memory.recall("whose")
        hidden, whose = [], []
        for head, (positions, own) in enumerate(zip(view.positions.long(), found.transpose(1, 2).float(), strict=True)):
            if noted[0] is not None and noted[1] is not None:
                positions = torch.cat((noted[0][head], positions))
                own = torch.cat((noted[1][head], own))
            kept = own.any(1) | (positions == 0)
            places, order = torch.unique(positions[kept], return_inverse=True)
            hidden.append(places)
            whose.append(own.new_zeros(len(places), own.shape[1]).index_add(0, order, own[kept]).clamp(max=1))
        return {"hidden": hidden, "whose": whose}

    def _found(self, view: View, where: Where) -> Tensor:
        """Which stored tokens are hidden sinks to the queries of the view, by what these saw: bool [h, g, n]."""
        t, n = view.queries.shape[2], view.count
        members = view.queries.split(1, dim=1)
        mass = torch.stack([column_mass(q, view.keys, where, view.scoring.of_keys) for q in members], 1)
        step = max(1, BLOCK_ELEMENTS // n)
        seen_by = sum(where.rows(a, min(a + step, t), t, n).sum(1) for a in range(0, t, step))
        sinks = mass > self.threshold * torch.as_tensor(seen_by, device=mass.device)[:, None]
        return sinks & (sinks.cumsum(-1) > 1)

    def edit(self, view: View, group: int) -> Edit | None:
        """Those that were noted, found among what is stored."""
        noted, heads = view.memory.recall("hidden"), self.steered(view, group)
        whose = view.memory.recall("whose")
        if noted is None or whose is None or not bool(heads.any()):
            return None
        hidden = torch.zeros(*heads.shape, view.count, dtype=torch.bool, device=heads.device)
        for head, (positions, own) in enumerate(zip(noted, whose, strict=True)):
            met = view.positions[head].long()[:, None] == positions.to(heads.device)
            hidden[head] = (met.float() @ own.to(heads.device)).T > 0
        hidden &= heads[:, :, None]
        return Calibrated(hidden.any(-1), hidden, self.beta) if bool(hidden.any()) else None

    def plain(self, scores: Tensor, view: View, member: int) -> Tensor:
        """Weights, row by row; a prompt's sinks are found by hand, those of a new token were noted."""
        weights = scores.softmax(-1)
        seen_by = (scores > -torch.inf).sum(0)
        sinks = [j for j in range(len(seen_by)) if float(weights[:, j].sum() / seen_by[j]) > self.threshold][1:]
        if len(scores) == 1:
            places, whose = view.memory.notes[view.layer, view.heads[0], "hidden"], view.memory.recall("whose")
            own = {int(place) for place, one in zip(places, whose[0] if whose else (), strict=True) if one[member]}
            sinks = [j for j, place in enumerate(view.positions[0].tolist()) if place in own]
        for row in weights:
            taken = row[sinks].sum()
            others = row.sum() - taken
            if taken > 0 and others > 0:
                left = row[sinks] * self.beta
                row *= 1 + (1 - self.beta) * taken / others
                row[sinks] = left
        return weights
