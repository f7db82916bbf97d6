"""Where each KV head looks: attention by distance and by length of the context, on sinks and nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headwise.attention.reference import probabilities, score_blocks, wide
from headwise.attention.view import View
from headwise.attention.where import Causal
from headwise.calibrate.look import Observer, observe
from headwise.engine.hf import PreTrainedModel, attach

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
        octaves = self.mass.shape[-1]
        heads = list(view.heads)
        mass = torch.zeros(len(heads), octaves * octaves)
        near = torch.zeros(len(heads), octaves, 2)
        t, n = view.queries.shape[2], view.count
        for rows, s, visible in score_blocks(wide(view.queries), wide(view.keys), Causal(), view.scale, view.softcap):
            p = probabilities(s, visible)[0].mean(1).cpu()  # [h, rows, m]
            at = torch.arange(n - t + rows.start, n - t + rows.stop)[:, None]
            keys = torch.arange(p.shape[2])
            length = octave(at[:, 0] + 1)
            cells = length[:, None] * octaves + octave((at - keys).clamp(min=0))
            mass.index_add_(1, cells.flatten(), p.flatten(1))
            sink, local = keys < SINKS, at - keys < LOCAL
            both = torch.stack(((p * sink).sum(-1), (p * (local & ~sink)).sum(-1)), dim=-1)
            near.index_add_(1, length, both)
            if view.layer == 0 and 0 in heads:
                self.queries.index_add_(0, length, torch.ones(len(length)))
        self.mass[view.layer, heads] += mass.unflatten(1, (octaves, octaves))
        self.near[view.layer, heads] += near


def attention_profile(model: PreTrainedModel, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """How the attention of each KV head's queries is spread, on average over documents `[1, n]` and query heads.

    `attention_by_distance` [L, h, lengths, distances]: by octave of the context that a query sees (itself included)
    and of the distance to the key, each counted as `octave` does; every length that occurs sums to 1. `sink_mass` and
    `local_mass` [L, h]: on the first 4 tokens, and on the latest 64 that are no sinks. `queries_by_length` [lengths].
    Attention is made by blocks: memory is linear in the length of a document.
    """
    geometry = attach(model).geometry
    octaves = int(octave(torch.tensor(max(ids.shape[1] for ids in documents) if documents else 1))) + 1
    shape = (geometry.layers, geometry.kv_heads, octaves)
    profile = _Profile(torch.zeros(*shape, octaves), torch.zeros(*shape, 2), torch.zeros(octaves))
    observe(model, profile, documents)
    sinks, local = (profile.near.sum(2) / profile.queries.sum()).unbind(-1)
    by_length = profile.mass / profile.queries.clamp(min=1)[:, None]
    return {
        "attention_by_distance": by_length,
        "sink_mass": sinks.contiguous(),
        "local_mass": local.contiguous(),
        "queries_by_length": profile.queries,
    }
