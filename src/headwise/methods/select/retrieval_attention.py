"""RetrievalAttention: keys that the prompt's queries found together lead a new query to those it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Causal, Tokens, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.select import Learner, stamp
from headwise.registry import Card, register


@register("select", "retrieval_attention")
@dataclass(frozen=True)
class RetrievalAttention(Learner):
    """budget: share of the stored tokens or number of tokens read per step, those always read included. sinks, recent:
    tokens always read.

    stride: every so many prompt queries one lays edges. nearest: keys that it joins with the nearest of them. width:
    best keys found whose edges a search follows.
    """

    sinks: NonNegative = 128
    recent: NonNegative = 512
    stride: Positive = 2
    nearest: Positive = 16
    width: Positive = 32

    needs = frozenset({"keys", "queries", "memory"})
    noted = {"edges": "int n n", "hubs": "int n", "end": "int"}
    card = Card(
        title="RetrievalAttention",
        paper="RetrievalAttention: Accelerating Long-Context LLM Inference via Vector Retrieval, arXiv 2409.10516, "
        "section 3",
        systems=(247,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores keys that its search does not reach",
        deviations="edges are a list that every step of a search reads through (numbers, not keys), not a stored "
        "graph; queries see earlier keys only; neighbours in the text are joined, too, so that all can be reached; "
        "tokens after the prompt are always read; one choice per KV head, by the largest score over the group and "
        "the step's queries, and one attention over all that is read",
    )

    def learn(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """What a chunk's queries join and those before them: [queries, 1 + nearest], the nearest key to the others, by
        true position; and the keys that are most often the nearest, where searches begin."""
        before, edges, hubs = view.memory.recall("edges"), [], []
        strided = view.query_positions % self.stride == 0  # by true position: chunks lay the edges that one pass lays
        asking = view.query_positions[strided]
        for head, own in enumerate(view.positions.long()):
            visible = (own >= self.sinks) & (own <= asking[:, None])
            able = visible.sum(1) >= self.nearest
            queries = view.queries[head][:, strided][:, able].float().flatten(0, 1)
            hidden = ~visible[able].repeat(view.queries.shape[1], 1)
            scores = (queries @ view.keys[head].float().T).masked_fill(hidden, -torch.inf)
            found = [own[one] for one in choose(scores, self.nearest, torch.zeros_like(hidden))]
            laid = torch.stack(found) if found else own.new_zeros(0, self.nearest)
            laid = torch.cat((own[scores.argmax(1, keepdim=True)], laid), 1)
            edges.append(laid if before is None else torch.cat((before[head], laid)))
            ends = edges[-1][:, 0].bincount(minlength=view.seen)[None].float()
            hubs.append(choose(ends, self.width, torch.zeros_like(ends, dtype=torch.bool))[0])
        return {"edges": edges, "hubs": hubs, "end": stamp(view)}

    def search(self, view: View, head: int, edges: torch.Tensor, hubs: torch.Tensor) -> torch.Tensor:
        """Scores [n] of the keys that a best-first search over the edges reaches, -inf for all others."""
        queries, keys = view.queries[head].float().flatten(0, 1), view.keys[head]
        entry_of = torch.full((view.seen + 1,), -1, device=keys.device)  # the last is outside: what has left has -1
        entry_of[view.positions[head].long()] = torch.arange(view.count, device=keys.device)
        position_of, edges = view.positions[head].long(), entry_of[edges]
        scores = queries.new_full((view.count,), -torch.inf)
        open_, reached = torch.zeros(2, view.count, dtype=torch.bool, device=keys.device)
        new = entry_of[hubs]
        while len(new := new[new >= 0].unique()) and len(new := new[~reached[new]]):
            reached[new], open_[new] = True, True
            scores[new] = (queries @ keys[new].float().T).amax(0)
            count = min(self.width, int(reached.sum()))
            best = choose(scores[None], count, torch.zeros_like(reached)[None])[0]
            follow = best[open_[best]]
            open_[follow] = False
            leads = torch.isin(edges, follow)
            beside = torch.cat((position_of[follow] - 1, position_of[follow] + 1)).clamp(0, view.seen)
            new = torch.cat((edges[leads[:, 0]].flatten(), edges[leads.any(1), 0], entry_of[beside]))
        return scores

    def select(self, view: View) -> Where:
        """What the search finds of the prompt's keys, and the tokens always read; everything where no prompt was."""
        edges, hubs, end = (view.memory.recall(name) for name in ("edges", "hubs", "end"))
        if edges is None or hubs is None or end is None:
            return Causal()
        scores = torch.stack([self.search(view, head, edges[head], hubs[head]) for head in range(len(view.heads))])
        return self._best_found(view, scores, int(end[0]))

    def _best_found(self, view: View, scores: torch.Tensor, end: int) -> Tokens:
        """The best tokens of finite `scores [h, n]`, those from position `end` on, and those always read."""
        always = self.protect(view) | (view.positions >= end)
        there = (always | scores.isfinite()).sum(1)
        return Tokens(choose(scores, there.clamp(max=self.amount.tokens_of(view.count)), always))

    def plain(self, view: View) -> Where:
        """The same with one key at a time, over the pairs of keys that are joined."""
        edges, hubs, end = (view.memory.recall(name) or () for name in ("edges", "hubs", "end"))
        scores = torch.full(view.positions.shape, -torch.inf)
        for h, own in enumerate(view.positions.tolist() if end else ()):
            products = torch.stack([view.keys[h].double() @ q.double() for q in view.queries[h].flatten(0, 1)])
            score = dict(zip(own, products.amax(0).tolist(), strict=True))
            joined = {(row[0], p) for row in edges[h].tolist() for p in row} | {(p, p + 1) for p in range(view.seen)}
            followed, found, new = set[int](), set[int](), set(hubs[h].tolist())
            while new := new & score.keys() - found:
                found |= new
                follow = set(sorted(found, key=score.__getitem__)[-self.width :]) - followed
                followed |= follow
                new = {b for a, b in joined if a in follow} | {a for a, b in joined if b in follow}
            scores[h] = torch.tensor([score[p] if p in found else -torch.inf for p in own])
        return self._best_found(view, scores, int(end[0])) if end else Causal()
