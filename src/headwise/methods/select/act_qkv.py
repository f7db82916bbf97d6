"""ActQKV: the step's most unusual queries ask for blocks; layers of spread scores read more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.forms import Tokens
from headwise.knobs import Positive, Share
from headwise.methods import densities
from headwise.methods.select import Summarised
from headwise.registry import Card, register


@register("select", "act_qkv")
@dataclass(frozen=True)
class ActQKV(Summarised):
    """budget: share of the stored tokens or number of tokens read per step, in whole blocks, on average over the
    layers. sinks, recent: tokens whose blocks are always read.

    size: tokens per block. representatives: keys that stand for a block. floor: part of the budget that every layer
    has; the densities share out the rest.
    """

    size: Positive = 16
    representatives: Positive = 4
    floor: Share = 0.5

    needs = frozenset({"keys", "summaries", "queries", "memory"})
    noted = {"density": "double 3"}
    waits_for_layers = True
    card = Card(
        title="ActQKV: activation-aware probe query",
        paper="Activation-aware Probe-Query: Effective Key-Value Retrieval for Long-Context LLMs Inference, "
        "arXiv 2502.13542, section 4",
        systems=(120,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step ignores blocks that the probe query does not match",
        deviations="a window is a step's new tokens, as prompts are read whole; a block's representatives are the keys "
        "furthest from its mean, as past queries are not stored, and the best of them counts; layers share the budget "
        "by the entropy of attention over one key of each block at the step before, the mean over a layer's heads, "
        "above a floor",
    )

    def conflict(self) -> str | None:
        if self.representatives > self.size:
            return f"representatives must be 1 to size = {self.size}, got {self.representatives}"
        return super().conflict()

    @property
    def summary_size(self) -> int:
        """A block."""
        return self.size

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """The keys furthest from the mean of their block: [h, blocks, representatives, d]."""
        keys = blocks.float()
        far = (keys - keys.mean(2, keepdim=True)).square().sum(-1).flatten(0, 1)
        chosen = choose_mask(far, self.representatives, torch.zeros_like(far, dtype=torch.bool))
        return keys.flatten(0, 1)[chosen].view(*keys.shape[:2], self.representatives, keys.shape[3])

    def probe(self, queries: torch.Tensor) -> torch.Tensor:
        """The window's queries [h, g, t, d] weighted by their activation bias: the squared deviation from the window's
        mean in units of its variance. [h, g, d]; a single query is its own probe."""
        deviation = queries - queries.mean(2, keepdim=True)
        bias = (deviation.square() / (deviation.square().mean(2, keepdim=True) + 1e-12)).sum(-1) + 1e-12
        return ((bias / bias.sum(2, keepdim=True))[..., None] * queries).sum(2)

    def density(self, view: View) -> torch.Tensor:
        """Entropy of the probe's attention over one key of each block, in nats, mean over the query group: [h]."""
        products = self.probe(view.queries.float()) @ view.keys[:, :: self.size].float().mT
        return torch.special.entr((products * view.scale).softmax(-1)).sum(-1).mean(1)

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """Tokens seen, the density now and at the step before: all layers of a step go by the densities before it."""
        past, now = view.memory.recall("density"), self.density(view).double()
        before = [one[1] for one in past] if past else [one.new_tensor(torch.nan) for one in now]
        stamps = [one.new_tensor(view.seen) for one in now]
        return {"density": [torch.stack(three) for three in zip(stamps, now, before, strict=True)]}

    def select(self, view: View) -> Tokens:
        """The tokens of the blocks whose representatives the probe matches best."""
        products = torch.einsum("hgd,hmrd->hgmr", self.probe(view.queries.float()), view.summaries)
        return self.best_blocks(view, products.amax((1, 3)), self.size, densities.share(view, self.floor))

    def plain(self, view: View) -> Tokens:
        """The same with one block, one query and one key at a time."""
        heads, groups, window, _ = view.queries.shape
        scores = torch.full((heads, -(-view.count // self.size)), -torch.inf, dtype=torch.float64)
        for h in range(heads):
            for g in range(groups):
                queries = view.queries[h, g].double()
                variance = sum((q - queries.mean(0)) ** 2 for q in queries) / window + 1e-12
                bias = [float(((q - queries.mean(0)) ** 2 / variance).sum()) + 1e-12 for q in queries]
                probe = sum(b / sum(bias) * q for b, q in zip(bias, queries, strict=True))
                for j in range(view.count // self.size):
                    keys = view.keys[h, j * self.size : (j + 1) * self.size].double()
                    distances = ((keys - keys.mean(0)) ** 2).sum(1).tolist()
                    far = sorted(range(self.size), key=distances.__getitem__)[-self.representatives :]
                    best = max(float(probe @ keys[i]) for i in far)
                    scores[h, j] = max(float(scores[h, j]), best)
        return self.best_blocks(view, scores, self.size, densities.plain_share(view, self.floor))
