"""RetrievalAttention: keys that the prompt's queries found together lead a new query to those it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Causal, Tokens, Where
from headwise.knobs import NonNegative, Positive
from headwise.methods.graph import entries, joined, nearest, search
from headwise.methods.select import Learner, stamp
from headwise.registry import Card, register


@register("select", "retrieval_attention")
@dataclass(frozen=True)
class RetrievalAttention(Learner):
    """budget: share of the stored tokens or number of tokens read per step, those always read included. sinks, recent:
    tokens always read.

    stride: every so many prompt queries one lays edges, from the best of its `nearest` keys to the others; with every
    query that costs as many products as the prompt's attention. kept: of so many of these one is kept; a search begins
    at what the kept queries most like its own found.
    degree: edges of a key. width, hops: a search follows the edges of so many keys at once, so many times.
    """

    sinks: NonNegative = 128
    recent: NonNegative = 512
    stride: Positive = 1
    nearest: Positive = 32
    kept: Positive = 8
    degree: Positive = 32
    width: Positive = 16
    hops: NonNegative = 4

    needs = frozenset({"keys", "queries", "memory"})
    noted = {"edges": "int n n", "often": "int n n", "asked": "n d", "found": "int n n", "end": "int"}
    card = Card(
        title="RetrievalAttention",
        paper="RetrievalAttention: Accelerating Long-Context LLM Inference via Vector Retrieval, arXiv 2409.10516, "
        "section 3",
        systems=(247,),
        phase="decode",
        query_aware=True,
        chunking="approximate",
        forgets="nothing for good: each step ignores keys that its search does not reach",
        deviations="the graph joins the nearest key of a query with its others, without the paper's pruning and second "
        "pass; searches begin at what the most similar kept query of the prompt found, and end after a few hops; "
        "queries see earlier keys only; neighbours in the text are followed, too; tokens after the prompt are always "
        "read; one choice per KV head, by the largest score over the group and the step's queries, and one attention "
        "over all that is read",
    )

    def learn(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """What a chunk's queries join, added to the graph of those before them, and what the kept ones found."""
        names, noted = ("edges", "often", "asked", "found"), dict[str, list[torch.Tensor]]()
        before = [view.memory.recall(name) for name in names]
        strided = view.query_positions % self.stride == 0  # by true position: chunks ask what one pass asks
        asking = view.query_positions[strided]
        for head, own in enumerate(view.positions.long()):
            visible = (own >= self.sinks) & (own <= asking[:, None])
            able = visible.sum(1) >= self.nearest
            queries = view.queries[head][:, strided][:, able]
            found, pivot = nearest(queries, view.keys[head], own, visible[able], self.nearest)
            pairs = torch.stack((pivot, found), 2)[pivot != found]
            stays = (asking[able] // self.stride % self.kept == 0).repeat(view.queries.shape[1])
            old = [None if one is None else one[head] for one in before]
            kept = queries.flatten(0, 1)[stays].float()
            laid = *joined(pairs, old[0], old[1], view.seen, self.degree), kept, found[stays]
            for name, past, new in zip(names, (None, None, *old[2:]), laid, strict=True):
                noted.setdefault(name, []).append(new if past is None else torch.cat((past, new)))
        return {**noted, "end": stamp(view)}

    def select(self, view: View) -> Where:
        """What the search finds of the prompt's keys, and the tokens always read; everything where no prompt asked."""
        if (told := self._told(view)) is None:
            return Causal()
        edges, asked, lists, end = told
        queries = view.queries.float().flatten(1, 2)
        like = (2 * queries @ asked.mT - asked.square().sum(-1)[:, None]).argmax(-1)  # the least distance
        first = lists.gather(1, like[..., None].expand(-1, -1, lists.shape[2])).flatten(1)
        places = entries(view.positions, view.seen)[:, : edges.shape[1]]
        return self._best(view, search(queries, view.keys, places, edges, first, (self.width, self.hops)), end)

    def _told(self, view: View) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int] | None:
        """Edges, kept queries and what they found, of all heads, and where the prompt ended; None without kept ones."""
        told = [view.memory.recall(name) for name in ("edges", "asked", "found", "end")]
        if any(one is None for one in told):
            return None
        edges, asked, found, end = (torch.stack(one) for one in told if one is not None)
        return (edges, asked.float(), found, int(end[0])) if asked.shape[1] else None

    def _best(self, view: View, scores: torch.Tensor, end: int) -> Tokens:
        """The best tokens of finite `scores [h, n]`, those from position `end` on, and those always read."""
        always = self.protect(view) | (view.positions >= end)
        there = (always | scores.isfinite()).sum(1)
        return Tokens(choose(scores, there.clamp(max=self.amount.tokens_of(view.count)), always))

    def plain(self, view: View) -> Where:
        """The same with one key at a time, over sets of positions."""
        if (told := self._told(view)) is None:
            return Causal()
        edges, asked, lists, end = told
        scores = torch.full(view.positions.shape, -torch.inf)
        for h, own in enumerate(view.positions.tolist()):
            queries = view.queries[h].double().flatten(0, 1)
            products = (view.keys[h].double() @ queries.T).amax(1).tolist()
            score = {p: one for p, one in zip(own, products, strict=True) if p < edges.shape[1]}
            near = [int((asked[h].double() - query).norm(dim=1).argmin()) for query in queries]
            found, followed = {p for j in near for p in lists[h, j].tolist()} & score.keys(), set[int]()
            for _ in range(self.hops):
                best = sorted(found - followed, key=score.__getitem__)[-self.width :]
                followed.update(best)
                found |= {o for p in best for o in (*edges[h, p].tolist(), p - 1, p + 1)} & score.keys()
            scores[h] = torch.tensor([score[p] if p in found else -torch.inf for p in own])
        return self._best(view, scores, end)
