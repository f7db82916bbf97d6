"""Where each KV head looks: attention by distance and by length of the context, on sinks and nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headwise.attention.view import View
from headwise.observe import Found, Material, Observer, Progress, Subject, measure

SINKS = 4  # first tokens that count as sinks
LOCAL = 64  # latest tokens that count as local, the query's own among them


def octave(x: torch.Tensor) -> torch.Tensor:
    """0 for 0, else 1 + the power of two that x lies at or above: 1, 2, 2, 3, 3, 3, 3, 4 for 1 to 8."""
    return (torch.frexp(x.float()).exponent).clamp(min=0).long()


@dataclass(frozen=True, eq=False)
class _Profile(Observer):
    """Sums up probabilities and queries: mass [L, h, lengths, distances], near [L, h, lengths, 2], queries [lengths].

    Of near, the first is on sinks, the second on local tokens that are none."""

    mass: torch.Tensor
    near: torch.Tensor
    queries: torch.Tensor

    def look(self, view: View) -> None:
        octaves, heads = self.mass.shape[-1], list(view.heads)
        begins = torch.tensor([0, *(2**i for i in range(octaves))])  # the distance at which each octave begins
        mass, near = torch.zeros(len(heads), octaves, octaves), torch.zeros(len(heads), octaves, 2)
        for at, p in view.group_means(view.queries.shape[2]):
            first = pad(p.cpu().cumsum(-1), (1, 0))  # what the first m keys got, [h, rows, m]
            seen = at.cpu()[:, None] + 1
            length, sinks = octave(seen[:, 0]), seen.clamp(max=SINKS)
            by_distance = _up_to(first, (seen - begins).clamp(min=0)).diff(dim=-1).neg()
            both = _up_to(first, torch.cat((sinks, torch.maximum(seen - LOCAL, sinks), seen), dim=1))
            mass.index_add_(1, length, by_distance)
            near.index_add_(1, length, torch.stack((both[..., 0], both[..., 2] - both[..., 1]), dim=-1))
            if view.layer == 0 and 0 in heads:
                self.queries.index_add_(0, length, torch.ones(len(length)))
        self.mass[view.layer, heads] += mass
        self.near[view.layer, heads] += near


def _up_to(first: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of sums [h, rows, m] over the first keys, those at the numbers of keys [rows, k]: [h, rows, k]."""
    return first.gather(2, keys.expand(first.shape[0], -1, -1))


def attention_profile(subject: Subject, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """How the attention of each KV head's queries is spread, on average over documents `[1, n]` and query heads.

    `attention_by_distance` [L, h, lengths, distances]: by octave of the context that a query sees (itself included)
    and of the distance to the key, each counted as `octave` does; every length that occurs sums to 1. `sink_mass` and
    `local_mass` [L, h]: on the first 4 tokens, and on the latest 64 that are no sinks. `queries_by_length` [lengths].
    Attention is made a few queries at a time: memory is that of reading.
    """
    sizes = subject.geometry.by_head
    octaves = int(octave(torch.tensor(max(ids.shape[1] for ids in documents) if documents else 1))) + 1
    shape = (*sizes, octaves)
    profile = _Profile(torch.zeros(*shape, octaves), torch.zeros(*shape, 2), torch.zeros(octaves))
    subject.observe(profile, documents)
    sinks, local = (profile.near.sum(2) / profile.queries.sum()).unbind(-1)
    by_length = profile.mass / profile.queries.clamp(min=1)[:, None]
    return {
        "attention_by_distance": by_length,
        "sink_mass": sinks.contiguous(),
        "local_mass": local.contiguous(),
        "queries_by_length": profile.queries,
    }


@measure("profile", cost=233)
def measured_profile(material: Material, progress: Progress) -> Found:
    """Attention by distance and by length, on sinks and nearby."""
    return {}, attention_profile(material.subject, material.documents)
