"""QAdA: a head reads its local tokens alone where a Gaussian model of the far keys predicts that they suffice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.errors import HeadwiseError
from headwise.forms import Tokens
from headwise.knobs import Share
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "qada")
@dataclass(frozen=True)
class QAdA(Select):
    """budget: share of the stored tokens or number of tokens that count as local, the latest. sinks, recent: tokens
    that count as local in any case.

    share: of the attention, which the local tokens must be predicted to hold for the others to be left out.
    """

    share: Share = 0.9

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="QAdA: query-adaptive local heads",
        paper="Unveiling Simplicities of Attention: Adaptive Long-Context Head Identification, arXiv 2502.09647",
        systems=(202,),
        phase="decode",
        query_aware=True,
        forgets="nothing for good: in some steps a head reads its local tokens alone",
        deviations="mean and covariance are those of the keys that are not local, taken anew at each step; a KV head "
        "is local when all of its query heads are predicted to be",
    )

    def select(self, view: View) -> Tokens:
        """Local tokens for the heads predicted to need no others, everything for the rest."""
        local = self._local(view)
        queries, keys = view.queries.float().flatten(1, 2), view.keys.float()
        near = (queries @ keys.mT * view.scale).masked_fill(~local[:, None], -torch.inf).logsumexp(-1)
        far = (~local).float()[..., None]
        count = far.sum(1, keepdim=True).clamp(min=1)
        mean = (keys * far).sum(1, keepdim=True) / count
        centred = (keys - mean) * far
        spread = torch.einsum("hrd,hnd->hrn", queries, centred).square().sum(-1) / count[:, 0]
        away = count[:, 0].log() + (queries @ mean.mT)[..., 0] * view.scale + spread * (view.scale**2 / 2)
        return self._read(local, torch.sigmoid(near - away).amin(1))

    def _local(self, view: View) -> torch.Tensor:
        """Bool [h, n]: the latest tokens of the budget, and those always read."""
        return choose_mask(view.positions.double(), self.amount.tokens_of(view.count), self.protect(view))

    def _read(self, local: torch.Tensor, held: torch.Tensor) -> Tokens:
        """Entries to read, by the share of attention [h] that the local ones are predicted to hold."""
        if torch.isnan(held).any():
            raise HeadwiseError("the predicted attention of a head is NaN: a stored key or a query is not a number")
        return Tokens([one.nonzero()[:, 0] for one in local | (held < self.share)[:, None]])

    def plain(self, view: View) -> Tokens:
        """The same with one query at a time and the covariance written out."""
        local = self._local(view)
        held = torch.ones(len(view.heads), dtype=torch.float64)
        for h, keys in enumerate(view.keys.double()):
            far = keys[~local[h]]
            for query in view.queries[h].double().flatten(0, 1):
                near = float((keys[local[h]] @ query * view.scale).logsumexp(0))
                away = 0.0
                if len(far):
                    mean = far.mean(0)
                    spread = (far - mean).T @ (far - mean) / len(far)
                    away = float(query @ mean * view.scale + view.scale**2 * (query @ spread @ query) / 2)
                away += math.log(max(1, len(far)))
                held[h] = min(float(held[h]), 1 / (1 + math.exp(away - near)))
        return self._read(local, held)
