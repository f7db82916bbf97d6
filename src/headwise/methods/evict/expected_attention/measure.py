"""Mean and covariance of a model's queries on texts of its kind, as plan tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.observe import Found, Material, Observer, Progress, Subject, measure

SINKS = 4  # first tokens of a document, whose queries are unlike all others, left out as in the released code


@dataclass(frozen=True, eq=False)
class _Moments(Observer):
    """Adds up q, q q^T and their number by layer, before rotation, in float64."""

    needs = frozenset({"queries", "rope"})
    sums: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def look(self, view: View) -> None:
        usable = view.query_positions >= SINKS
        queries, positions = view.queries[:, :, usable].float(), view.query_positions[usable]
        if view.rope is not None:
            queries = view.rope.unrotate(queries, positions)
        queries = queries.double()
        new = [queries.sum(2), queries.mT @ queries, torch.tensor(float(queries.shape[2]), dtype=torch.float64)]
        old = self.sums.get(view.layer, [torch.zeros(()).double()] * 3)
        self.sums[view.layer] = [one + more.cpu() for one, more in zip(old, new, strict=True)]


def query_statistics(subject: Subject, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plan tensors `expected_attention.mean` [layers, kv_heads, g, d] and `.covariance` [layers, kv_heads, g, d, d].

    documents: ids [1, n] each, of the kind the model will read. Sliding layers, where nothing is evicted, get zeros.
    """
    geometry = subject.geometry
    group, width = geometry.size("g"), geometry.size("d")  # refused before any work
    subject.observe(moments := _Moments(), documents)
    mean = torch.zeros(*geometry.by_head, group, width)
    covariance = torch.zeros(*geometry.by_head, group, width, width)
    for layer, (total, products, count) in moments.sums.items():
        centre = total / count
        spread = products / count - centre[..., None] * centre[..., None, :]
        mean[layer, : len(centre)], covariance[layer, : len(centre)] = centre.float(), spread.float()
    return {"expected_attention.mean": mean, "expected_attention.covariance": covariance}


@measure("query_statistics", cost=125)
def measured_statistics(material: Material, progress: Progress) -> Found:
    """Mean and covariance of each query head's queries (Expected Attention)."""
    return {}, query_statistics(material.subject, material.documents)
