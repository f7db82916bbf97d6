"""Columns of a CUR decomposition: tokens whose key and value are long for their neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from headwise.attention.view import View
from headwise.knobs import Positive
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "cur")
@dataclass(frozen=True)
class CurDKV(Evict):
    """Scores a token by the squared lengths of its key and its value, each as a share of those of its neighbours.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    size: stored tokens that are neighbours, in blocks from the first. by: the product of both shares, their mean, or
    one of them.
    """

    size: Positive = 16
    by: Literal["product", "mean", "key", "value"] = "product"

    needs = frozenset({"keys", "values"})
    card = Card(
        title="CurDKV",
        paper="Value-Guided KV Compression for LLMs via Approximated CUR Decomposition, arXiv 2509.15038",
        frees_memory=True,
        chunking="approximate",
        forgets="tokens whose key and value are shorter than those around them",
        deviations="as NVIDIA's kvpress: squared lengths and not leverage scores proper, in blocks of neighbours, and "
        "no Gaussian projection; protects recent tokens too; after an eviction neighbours are those in the cache",
    )

    def score(self, view: View) -> torch.Tensor:
        """The share of its block [h, n]."""
        key, value = (self._share(x.float().square().sum(-1)) for x in (view.keys, view.values))
        return {"product": key * value, "mean": (key + value) / 2, "key": key, "value": value}[self.by]

    def _share(self, squared: torch.Tensor) -> torch.Tensor:
        """Squared lengths [h, n] over the sum of their block."""
        count = squared.shape[1]
        size = min(self.size, count)
        blocks = pad(squared, (0, -count % size)).unflatten(1, (-1, size))
        return (blocks / blocks.sum(-1, keepdim=True).clamp(min=1e-30)).flatten(1)[:, :count]

    def plain(self, view: View) -> torch.Tensor:
        """The same, block by block."""
        shares = []
        for x in (view.keys, view.values):
            lengths = [[float(v.double() @ v.double()) for v in head] for head in x]
            shares.append([
                [one / max(sum(row[i - i % self.size : i - i % self.size + self.size]), 1e-30)
                 for i, one in enumerate(row)] for row in lengths
            ])  # fmt: skip
        key, value = torch.tensor(shares, dtype=torch.float64)
        return {"product": key * value, "mean": (key + value) / 2, "key": key, "value": value}[self.by]
