"""HyperAttention: queries and keys that hash alike are read exactly, of the others a sample stands for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Blocks, Buckets, Causal, Composite, Piece, Where
from headwise.knobs import Ge, Le, Positive
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "hyper")
@dataclass(frozen=True)
class Hyper(Prefill):
    """size: keys in a block of the sorted order, which is read exactly. drawn: keys drawn at random that stand for all
    others. bits: random planes that the order goes by. least: queries below which nothing is estimated, in tokens: a
    prompt of fewer than twice as many is read exactly.
    """

    size: Positive = 256
    drawn: Positive = 256
    bits: Annotated[int, Ge(1), Le(30)] = 7
    least: Positive = 4096

    needs = frozenset({"keys", "queries"})
    weighs = True
    card = Card(
        title="HyperAttention",
        paper="HyperAttention: Long-context Attention in Near-Linear Time, arXiv 2310.05869, algorithms 1, 3 and 4",
        systems=(43,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but far keys outside a query's own bucket count through a random sample of all",
        deviations="keys are drawn without replacement, the same for all heads of a layer; neighbours in the order "
        "differ in one bit, where the released code numbers buckets so that some differ in more; blocks are even, "
        "where the code fills up the last with zeros; a sampled key that a block reads exactly is hidden there, as in "
        "the code's plain path and not in its fused one; what chunks before the last hold is estimated as one piece",
    )

    def pieces(self, first: int, start: int, stop: int) -> Iterator[tuple[range, range]]:
        """Queries start..stop-1 over the keys from `first` to themselves, cut up (algorithm 4): ranges of queries and
        of keys, both by storage entry. Keys before all queries of their piece are estimated, others read causally."""
        if first < start and stop - start >= self.least:
            yield range(start, stop), range(first, start)
            yield from self.pieces(start, start, stop)
        elif first < start or stop - start < 2 * self.least:
            yield range(start, stop), range(first, stop)
        else:
            middle = (start + stop + 1) // 2
            yield from self.pieces(start, start, middle)
            yield from self.pieces(start, middle, stop)

    def codes(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """Place of each vector of x [..., d] in an order of buckets whose neighbours differ in one bit: int64 [...]."""
        planes = torch.randn(x.shape[-1], self.bits, generator=torch.Generator().manual_seed(seed)).to(x.device)
        codes = ((x.float() @ planes > 0) << torch.arange(self.bits, device=x.device)).sum(-1)
        for shift in (1, 2, 4, 8, 16):  # from Gray code to its number
            codes = codes ^ (codes >> shift)
        return codes

    def luck(self, view: View) -> torch.Tensor:
        """A random number for each stored entry, [1, n]: the highest of a piece are its sample."""
        random = torch.Generator().manual_seed(view.seed + view.layer)
        return torch.rand(1, view.count, generator=random).to(view.positions.device)

    def where(self, view: View) -> Where:
        """Exact pieces near the diagonal, buckets and samples for the rest."""
        past = view.count - view.queries.shape[2]
        asked, kept, luck = self.codes(view.queries, view.seed), self.codes(view.keys, view.seed), self.luck(view)
        parts = []
        for queries, keys in self.pieces(0, past, view.count):
            rows, columns = slice(queries.start - past, queries.stop - past), slice(keys.start, keys.stop)
            form: Where = Causal()
            if keys.stop <= queries.start:
                buckets = Buckets.of_codes(asked[:, :, rows], kept[:, columns], self.size)
                own = luck[:, columns]
                sample = choose(own, self.drawn, torch.zeros_like(own, dtype=torch.bool))[0]
                form = buckets.sampled(sample, len(keys))
            parts.append(Piece(range(rows.start, rows.stop), keys, form))
        return Composite(tuple(parts))

    def plain(self, view: View) -> Where:
        """The same pair by pair."""
        (heads, group, t, _), n = view.queries.shape, view.count
        seen, past, luck = torch.zeros(heads, t, n, dtype=torch.bool), n - t, self.luck(view)[0].tolist()
        for queries, keys in self.pieces(0, past, n):
            if keys.stop > queries.start:
                for i in queries:
                    seen[:, i - past, keys.start : i + 1] = True
                continue
            sample = sorted(keys, key=luck.__getitem__)[-self.drawn :]
            blocks = min(-(-len(keys) // self.size), len(queries))
            for h in range(heads):
                kept = dict(zip(keys, self.codes(view.keys[h, keys], view.seed).tolist(), strict=True))
                order = sorted(keys, key=kept.__getitem__)
                for g in range(group):
                    rows = [i - past for i in queries]
                    asked = dict(zip(queries, self.codes(view.queries[h, g, rows], view.seed).tolist(), strict=True))
                    ranked = sorted(queries, key=asked.__getitem__)
                    for b in range(blocks):
                        mine = ranked[b * len(ranked) // blocks : (b + 1) * len(ranked) // blocks]
                        read = order[b * len(order) // blocks : (b + 1) * len(order) // blocks]
                        for i in mine:
                            seen[h, i - past, [*read, *sample]] = True
        return Blocks.from_map(1, seen)
