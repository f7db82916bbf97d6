"""TokenSelect: all heads of a layer vote for the tokens it reads; a choice is used again while queries stay alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.attention.where import Tokens
from headwise.errors import HeadwiseError
from headwise.methods.select import Select, positions_of, stamp
from headwise.registry import Card, register


@register("select", "token_select")
@dataclass(frozen=True)
class TokenSelect(Select):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.

    alike: cosine between a step's queries and those of the last choice above which that choice is used again; 1 never.
    """

    sinks: int = 128
    recent: int = 512
    alike: float = 0.9

    needs = frozenset({"keys", "queries", "memory"})
    card = Card(
        title="TokenSelect",
        paper="TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level "
        "KV Cache Selection, arXiv 2411.02886, section 4",
        systems=(61,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores the tokens that the layer's heads together attend to least",
        deviations="the vote is among the KV heads that follow the recipe and hold equally many tokens; tokens keep "
        "their positions; prompts are read densely",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.alike <= 1:
            raise HeadwiseError(f"alike is a cosine, -1 to 1, got {self.alike}")

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """A new choice with its queries, where there is none or the queries turned away from it."""
        noted = view.memory.recall("queries")
        queries = view.queries.float().mean(2)  # [h, g, d]
        if noted is not None and self._alike(queries, torch.stack(noted)):
            return {}
        chosen = self.best(view, self._votes(view))
        return {"queries": tuple(queries), "chosen": positions_of(view, chosen), "at": stamp(view)}

    def _alike(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > self.alike

    def _votes(self, view: View) -> torch.Tensor:
        """Attention probability that the tokens get from all heads together, [h, n], over the queries of a head."""
        return self._by_position(view, self.weights(view))

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

    def plain(self, view: View) -> Tokens:
        """A new choice, with one softmax row at a time."""
        heads, group, t, _ = view.queries.shape
        weights = torch.zeros(view.positions.shape, dtype=torch.float64)
        for h in range(heads):
            for g in range(group):
                for i in range(t):
                    scores = view.keys[h].double() @ view.queries[h, g, i].double() * view.scale
                    weights[h] += scores.masked_fill(view.positions[h] > view.query_positions[i], -torch.inf).softmax(0)
        return self.best(view, self._by_position(view, weights))
