"""Distinctive keys stay: a key that looks like the average key says nothing the others do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, normalize

from headwise.attention.view import View
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "keydiff")
@dataclass(frozen=True)
class KeyDiff(Evict):
    """Keeps the keys with the lowest cosine similarity to the mean direction of all keys stored.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    """

    needs = frozenset({"keys"})
    card = Card(
        title="KeyDiff",
        paper="KeyDiff: Key Similarity-Based KV Cache Eviction, arXiv 2504.15364",
        frees_memory=True,
        chunking="approximate",
        forgets="tokens whose keys are close to the average key",
        deviations="protects sinks and recent tokens too (sinks=0, recent=0 is the paper's algorithm)",
    )

    def score(self, view: View) -> torch.Tensor:
        """Minus the cosine [h, n] between each key and the mean of the normalised keys."""
        keys = view.keys.float()
        anchor = normalize(keys, dim=-1).mean(dim=1, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)

    def plain(self, view: View) -> torch.Tensor:
        """The same, key by key."""
        rows = []
        for keys in view.keys.double().tolist():
            lengths = [math.hypot(*key) for key in keys]
            directions = [[c / length for c in key] for key, length in zip(keys, lengths, strict=True)]
            anchor = [sum(channel) / len(keys) for channel in zip(*directions, strict=True)]
            size = math.hypot(*anchor)
            rows.append([-sum(a * c for a, c in zip(anchor, unit, strict=True)) / size for unit in directions])
        return torch.tensor(rows, dtype=torch.float64)
