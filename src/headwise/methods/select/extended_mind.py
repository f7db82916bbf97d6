"""Extended Mind: each query takes its own few memories by cosine, whatever their distance, beside the local tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.forms import Tokens
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

    needs = frozenset({"keys", "queries", "query_positions", "rope"})
    card = Card(
        title="Extended Mind Transformers",
        paper="Extended Mind Transformers, arXiv 2406.02332, section 3",
        systems=(223,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores tokens whose unrotated keys point elsewhere than its queries",
        deviations="the memory is the stored tokens outside sinks and window, which with "
        "positions='fixed' lie at position 0, else at their true ones; the queries of a step, a chunk of a prompt "
        "included, read what any of those of their KV head took",
    )

    def select(self, view: View) -> Tokens:
        """What each query takes by cosine without rotation, together."""
        keys, queries = view.keys.float(), view.queries.float()
        if view.rope is not None:
            keys = view.rope.unrotate(keys, view.positions)
            queries = view.rope.unrotate(queries, view.query_positions)
        keys, queries = (torch.nn.functional.normalize(x, dim=-1) for x in (keys, queries))
        cosines = queries.flatten(1, 2) @ keys.mT  # [h, g * t, n]
        always = self.protect(view)
        protect = always.repeat_interleave(cosines.shape[1], 0)
        taken = choose_mask(cosines.flatten(0, 1), self.amount.tokens_of(view.count) + protect.sum(1), protect).view_as(
            cosines
        )
        read = (taken & (cosines >= self.floor)).any(1) | always
        return Tokens([one.nonzero()[:, 0] for one in read])

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

    def plain(self, view: View) -> Tokens:
        """The same with one query and one key at a time."""
        heads, group, t, _ = view.queries.shape
        always, count, lists = self.protect(view), self.amount.tokens_of(view.count), []

        def bare(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return (x if view.rope is None else view.rope.unrotate(x[None], position[None])[0]).double()

        for h in range(heads):
            sure = set(always[h].nonzero()[:, 0].tolist())
            keys = [bare(key, place) for key, place in zip(view.keys[h], view.positions[h], strict=True)]
            read = set(sure)
            for g in range(group):
                for i in range(t):
                    query = bare(view.queries[h, g, i], view.query_positions[i])
                    near = [float(query @ key / query.norm() / key.norm()) for key in keys]
                    others = sorted((j for j in range(len(keys)) if j not in sure), key=lambda j: -near[j])
                    read |= {j for j in others[:count] if near[j] >= self.floor}
            lists.append(torch.tensor(sorted(read)))
        return Tokens(lists)
