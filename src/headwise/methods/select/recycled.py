"""Recycled Attention: a full step now and then; the steps between read what that one attended to most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Causal, Where
from headwise.knobs import Cosine, Positive
from headwise.methods.select import Select, positions_of, stamp
from headwise.registry import Card, register


@register("select", "recycled")
@dataclass(frozen=True)
class Recycled(Select):
    """budget: share of the stored tokens or number of tokens that a full step recycles. sinks, recent: tokens always
    read.

    every: new tokens from one full step to the next. alike: cosine between a step's queries and those of the last full
    step below which it is a full step; -1 never.
    """

    every: Positive = 10
    alike: Cosine = -1.0

    breaks_even = 32768
    needs = frozenset({"keys", "queries", "memory"})
    noted = {"at": "int", "queries": "g d", "chosen": "int n"}
    card = Card(
        title="Recycled Attention",
        paper="Recycled Attention: Efficient inference for long-context language models, arXiv 2411.05787, section 3",
        systems=(20,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: between full steps, what the last one did not attend to is ignored",
        deviations="between full steps new tokens join what is read and none is dropped, so that up to `every` more "
        "are read",
    )

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """At a full step, the tokens of largest weight, and its queries."""
        at, noted = view.memory.recall("at"), view.memory.recall("queries")
        queries = view.queries.float().mean(2)  # [h, g, d]
        if at is not None and noted is not None:
            likeness = float(torch.cosine_similarity(queries.flatten(), torch.stack(noted).flatten(), dim=0))
            if view.seen - int(at[0]) < self.every and likeness >= self.alike:
                return {}
        chosen = self.best(view, self.weights(view))
        return {"at": stamp(view), "queries": tuple(queries), "chosen": positions_of(view, chosen)}

    def select(self, view: View) -> Where:
        """Everything at a full step, else what the last one chose and the tokens since."""
        at, chosen = view.memory.recall("at"), view.memory.recall("chosen")
        if at is None or chosen is None or int(at[0]) == view.seen:
            return Causal()
        return self.again(view, chosen, int(at[0]))

    def plain(self, view: View) -> Where:
        """Everything at a full step, else what the last one chose, weighed anew by its noted queries, a softmax row at
        a time (of a step of one token: of more, only their mean is noted), and the tokens since."""
        at, queries = view.memory.recall("at"), view.memory.recall("queries")
        if at is None or queries is None or not 0 < view.seen - int(at[0]) < self.every:
            return Causal()
        chosen, then = [], int(at[0])
        for own, keys, noted in zip(view.positions, view.keys.double(), queries, strict=True):
            old = own[own < then].tolist()
            weights = torch.zeros(len(old), dtype=torch.float64)
            for query in noted.double():
                weights += (keys[: len(old)] @ query * view.scale).softmax(0)
            sure = {p for p in old if p < self.sinks or p >= then - self.recent}
            others = [old[j] for j in sorted(range(len(old)), key=weights.tolist().__getitem__) if old[j] not in sure]
            room = max(0, self.amount.tokens_of(len(old)) - len(sure))
            chosen.append(torch.tensor([*sure, *others[len(others) - min(room, len(others)) :]]))
        return self.plain_again(view, chosen, then)
