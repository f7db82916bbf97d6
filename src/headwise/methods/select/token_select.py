"""TokenSelect: all heads of a layer vote for the tokens it reads; a choice is used again while queries stay alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from headwise.attention.view import View
from headwise.forms import Tokens
from headwise.knobs import Cosine, NonNegative
from headwise.methods.repositioned import Repositioned
from headwise.methods.select import positions_of, stamp
from headwise.registry import Card, register


@register("select", "token_select")
@dataclass(frozen=True)
class TokenSelect(Repositioned):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    alike: cosine between a step's queries and those of the last choice above which that choice is used again; 1 never.
    """

    sinks: NonNegative = 128
    recent: NonNegative = 512
    alike: Cosine = 0.9

    needs = frozenset({"keys", "queries", "memory"})
    noted = {"at": "int", "queries": "g d", "chosen": "int n"}
    card = Card(
        title="TokenSelect",
        paper="TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level "
        "KV Cache Selection, arXiv 2411.02886, section 4",
        systems=(61,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores the tokens that the layer's heads together attend to least",
        deviations="the vote is among the KV heads that follow the recipe and hold equally many tokens; a choice is "
        "used again for as many tokens as are recent; without positions='compact' tokens keep their positions and "
        "prompts are read densely",
    )

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """A new choice with its queries, where there is none or the queries turned away from it."""
        queries = self.bare(view).queries.float().mean(2)  # [h, g, d]
        if self._still_good(view, queries):
            return {}
        chosen = self.best(view, self._votes(view))
        return {"queries": tuple(queries), "chosen": positions_of(view, chosen), "at": stamp(view)}

    def _still_good(self, view: View, queries: torch.Tensor) -> bool:
        """Whether the noted choice is to be used again, with no more tokens since it than are recent."""
        noted, at = view.memory.recall("queries"), view.memory.recall("at")
        if view.phase == "prefill" or noted is None or at is None or view.seen - int(at[0]) > self.recent:
            return False
        return float(torch.cosine_similarity(queries.flatten(), torch.stack(noted).flatten(), dim=0)) > self.alike

    def _votes(self, view: View) -> torch.Tensor:
        """Attention probability that the tokens get from all heads together, [h, n], over the queries of a head; a
        chunk of a prompt asks with its mean query."""
        asked = self.bare(view)
        if view.phase == "prefill":
            mean = asked.queries.mean(2, keepdim=True)
            asked = replace(asked, granted={**asked.granted, "queries": mean})
        return self._by_position(view, self.weights(asked))

    def _by_position(self, view: View, weights: torch.Tensor) -> torch.Tensor:
        """The sum over heads of weights [h, n] at equal positions."""
        places = view.positions.long()
        total = weights.new_zeros(view.seen).index_add(0, places.flatten(), weights.flatten())
        return total[places]

    def select(self, view: View) -> Tokens:
        """The noted choice with the tokens since."""
        chosen, at = view.memory.recall("chosen"), view.memory.recall("at")
        if chosen is None or at is None:
            return self.best(view, self._votes(view))
        return self.again(view, chosen, int(at[0]))

    def span(self, past: int) -> int:
        """As for others; a choice that is used again is read with the recent tokens since."""
        return min(past, super().span(past) + self.recent)

    def plain(self, view: View) -> Tokens:
        """What was noted at an earlier step, else a new choice, with one softmax row at a time."""
        chosen, at = view.memory.recall("chosen"), view.memory.recall("at")
        if chosen is not None and at is not None and int(at[0]) < view.seen:
            return self.plain_again(view, chosen, int(at[0]))
        asked = self.bare(view)
        queries = asked.queries if view.phase == "decode" else asked.queries.mean(2, keepdim=True)
        heads, group, t, _ = queries.shape
        last = view.query_positions[-t:]
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        for h in range(heads):
            for g in range(group):
                for i in range(t):
                    scores = asked.keys[h].double() @ queries[h, g, i].double() * view.scale
                    weights[h] += scores.masked_fill(view.positions[h] > last[i], -torch.inf).softmax(0)
        return self.best(view, self._by_position(view, weights))
