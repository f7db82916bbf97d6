"""Extended Mind: each query takes its own few memories by cosine, whatever their distance, beside the local tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.forms import Tokens, Weighted
from headwise.knobs import MOST, Cosine
from headwise.methods.repositioned import Repositioned
from headwise.registry import Card, register


@register("select", "extended_mind")
@dataclass(frozen=True)
class ExtendedMind(Repositioned):
    """budget: share of the stored tokens or number of tokens that each query head takes beside those always read,
    which are sinks and recent.

    floor: memories of a lower cosine are not taken; -1 takes all (the paper: 0.25).
    """

    floor: Cosine = -1.0
    positions: Literal["true", "fixed"] = field(default="true", kw_only=True)  # type: ignore[assignment]

    needs = frozenset({"keys", "queries", "query_positions", "rope", "memory"})
    weighs = True
    noted = {"cited": "int n"}
    card = Card(
        title="Extended Mind Transformers",
        paper="Extended Mind Transformers, arXiv 2406.02332, section 3",
        systems=(223,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores tokens whose unrotated keys point elsewhere than its queries",
        deviations="the memory is the stored tokens outside sinks and window, which with "
        "positions='fixed' lie at position 0, else at their true ones",
    )

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """True positions of the memories that any query of the step took: what its answer can cite."""
        taken = self._taken(view).flatten(1, 2).any(1)
        return {"cited": [own[one].long() for own, one in zip(view.positions, taken, strict=True)]}

    def _taken(self, view: View) -> torch.Tensor:
        """Which memories each query takes by cosine without rotation, bool [h, g, t, n]."""
        keys, queries = view.keys.float(), view.queries.float()
        if view.rope is not None:
            keys = view.rope.unrotate(keys, view.positions)
            queries = view.rope.unrotate(queries, view.query_positions)
        keys, queries = (torch.nn.functional.normalize(x, dim=-1) for x in (keys, queries))
        cosines = queries.flatten(1, 2) @ keys.mT  # [h, g * t, n]
        protect = self.protect(view).repeat_interleave(cosines.shape[1], 0)
        best = choose_mask(cosines.flatten(0, 1), self.amount.tokens_of(view.count) + protect.sum(1), protect)
        taken = (best & ~protect).view_as(cosines) & (cosines >= self.floor)
        return taken.unflatten(1, queries.shape[1:3])

    def select(self, view: View) -> Weighted:
        """The tokens always read, and each query's own memories, which a bias hides from the others."""
        always, taken = self.protect(view), self._taken(view)
        read = taken.flatten(1, 2).any(1) | always
        shows = always[:, None, None] | taken
        entries = [one.nonzero()[:, 0] for one in read]
        biases = [own[..., one].float().log() for own, one in zip(shows, entries, strict=True)]  # 0 or -inf
        return Weighted(Tokens(entries), tuple(biases))

    def beside(self, tokens: int) -> ExtendedMind:
        """As for others; what a query takes beside is no more."""
        return replace(self, recent=min(self.recent + tokens, MOST))

    def span(self, past: int) -> int:
        """Memories share one position."""
        return min(past, 1 + self.sinks + self.recent)

    def places(self, view: View, past: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sinks and recent tokens as if nothing else had been stored; every memory at 0."""
        placed = []
        for local, entries in zip(self.protect(view), past, strict=True):
            own = local[entries]
            placed.append((own.cumsum(0) - 1) * own)
        return placed

    def plain(self, view: View) -> Weighted:
        """The same with one query and one key at a time."""
        heads, group, t, _ = view.queries.shape
        always, count = self.protect(view), self.amount.tokens_of(view.count)
        entries, biases = [], []

        def bare(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return (x if view.rope is None else view.rope.unrotate(x[None], position[None])[0]).double()

        for h in range(heads):
            sure = set(always[h].nonzero()[:, 0].tolist())
            keys = [bare(key, place) for key, place in zip(view.keys[h], view.positions[h], strict=True)]
            own = {}
            for g, i in itertools.product(range(group), range(t)):
                query = bare(view.queries[h, g, i], view.query_positions[i])
                near = [float(query @ key / query.norm() / key.norm()) for key in keys]
                others = sorted((j for j in range(len(keys)) if j not in sure), key=lambda j: -near[j])
                own[g, i] = sure | {j for j in others[:count] if near[j] >= self.floor}
            read = sorted(set().union(sure, *own.values()))
            bias = [[[0.0 if j in own[g, i] else -math.inf for j in read] for i in range(t)] for g in range(group)]
            entries.append(torch.tensor(read, dtype=torch.int64))
            biases.append(torch.tensor(bias).view(group, t, len(read)))
        return Weighted(Tokens(entries), tuple(biases))
