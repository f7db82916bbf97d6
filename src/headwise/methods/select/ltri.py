"""Ltri-LLM: stretches that attend to themselves are spans; a new query retrieves those whose vectors it matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headwise.attention.byproducts import row_lse
from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Causal, Tokens, Where
from headwise.knobs import BlockSize, PositiveWeight, Weight
from headwise.methods.select import Learner, stamp
from headwise.methods.triangles import spans
from headwise.registry import Card, register

ROWS = 256  # queries looked at together


@register("select", "ltri")
@dataclass(frozen=True)
class Ltri(Learner):
    """budget: share of the stored tokens or number of tokens read per step, those always read included. sinks, recent:
    tokens always read.

    longest: most tokens of a span. density: attention per pair of tokens that a span must exceed; it grows to about
    1 / density. votes: weight of what all heads of the layer would read beside what a head would.
    """

    longest: BlockSize = 16
    density: PositiveWeight = 0.02
    votes: Weight = 0.25

    needs = frozenset({"keys", "queries", "memory"})
    noted = {"firsts": "int s", "vectors": "s d", "end": "int"}
    card = Card(
        title="Ltri-LLM",
        paper="Ltri-LLM: Streaming Long Context Inference for LLMs with Training-Free Dynamic Triangular Attention "
        "Pattern, arXiv 2412.04757",
        systems=(183,),
        phase="decode",
        query_aware=True,
        chunking="approximate",
        forgets="nothing for good: each step ignores spans whose vectors it does not match",
        deviations="read from abstract and summaries, as no code is public: a span's vector, the mean of its keys, and "
        "the rule of votes, a softmax of matches by all heads; what no span took is cut into spans, too; what comes "
        "after the prompt is always read; the prompt attends to everything",
    )

    def band(self, view: View) -> torch.Tensor:
        """Attention of each of the chunk's queries on the chunk's key at each distance below `longest`, mean over the
        group: [h, t, longest]."""
        t, rows = view.queries.shape[2], []
        lse = row_lse(view.queries, view.keys, Causal(), view.scoring)
        near = pad(view.keys[:, view.count - t :].float(), (0, 0, self.longest - 1, 0)).unfold(1, self.longest, 1)
        for q, k, norm in zip(view.queries.split(ROWS, 2), near.split(ROWS, 1), lse.split(ROWS, 2), strict=True):
            raw = torch.einsum("hgtd,htdw->hgtw", q.float() * view.scale, k).flip(-1)
            raw = view.scoring.capped(raw)
            rows.append((raw - norm[..., None]).exp().mean(1))
        return torch.cat(rows, 1).tril()  # distance 1 is not there for the first query, and so on

    def learn(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """True positions of the first tokens of spans [m], and the spans' vectors [m, d]."""
        t, starts, means = view.queries.shape[2], [], []
        for head, own in enumerate(self.band(view)):
            cuts, keys = spans(own, self.density), view.keys[head, view.count - t :].float()
            span = torch.bucketize(torch.arange(t, device=keys.device), cuts, right=True) - 1
            sums = keys.new_zeros(len(cuts), keys.shape[1]).index_add_(0, span, keys)
            starts.append(view.positions[head, view.count - t :][cuts].long())
            means.append(sums / span.bincount()[:, None])
        noted = {"firsts": starts, "vectors": means}
        for name, new in noted.items():
            before = view.memory.recall(name)
            noted[name] = new if before is None else [torch.cat(pair) for pair in zip(before, new, strict=True)]
        return {**noted, "end": stamp(view)}

    def select(self, view: View) -> Where:
        """Tokens of the spans that the queries match and the layer's heads vote for; everything without a prompt."""
        firsts, vectors, end = (view.memory.recall(name) for name in ("firsts", "vectors", "end"))
        if firsts is None or vectors is None or end is None:
            return Causal()
        wanted = torch.zeros(len(view.heads), view.seen, device=view.positions.device)
        for head, (first, vector) in enumerate(zip(firsts, vectors, strict=True)):
            match = (view.queries[head].float().flatten(0, 1) @ vector.T * view.scale).amax(0).softmax(0)
            span = torch.bucketize(torch.arange(view.seen, device=first.device), first, right=True) - 1
            wanted[head] = match[span.clamp(min=0)]
        scores = (wanted + self.votes * wanted.mean(0)).gather(1, view.positions.long())
        always = self.protect(view) | (view.positions >= int(end[0]))
        return Tokens(choose(scores, self.amount.tokens_of(view.count), always))

    def plain(self, view: View) -> Where:
        """The same with one query and one span at a time."""
        firsts, vectors, end = (view.memory.recall(name) for name in ("firsts", "vectors", "end"))
        if firsts is None or vectors is None or end is None:
            return Causal()
        wanted = torch.zeros(len(view.heads), view.seen, dtype=torch.float64)
        for h, (first, vector) in enumerate(zip(firsts, vectors, strict=True)):
            queries = view.queries[h].double().flatten(0, 1)
            best = torch.stack([max(q @ one * view.scale for q in queries) for one in vector.double()])
            for place, match in zip(first.tolist(), best.softmax(0), strict=True):
                wanted[h, place:] = match  # up to the next span, which writes over it
        votes = [sum(float(wanted[h, p]) for h in range(len(wanted))) / len(wanted) for p in range(view.seen)]
        lists = []
        for h, own in enumerate(view.positions.tolist()):
            sure = [j for j, p in enumerate(own) if p < self.sinks or p >= min(int(end[0]), view.seen - self.recent)]
            scores = [float(wanted[h, p]) + self.votes * votes[p] for p in own]
            others = sorted((j for j in range(len(own)) if j not in sure), key=lambda j: (-scores[j], -j))
            room = max(0, self.amount.tokens_of(view.count) - len(sure))
            lists.append(torch.tensor(sorted([*sure, *others[:room]])))
        return Tokens(lists)
