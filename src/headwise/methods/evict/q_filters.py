"""Queries of a head point one way: a key is worth how far it reaches along that way, whatever the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.knobs import Positive
from headwise.methods.evict import Evict
from headwise.observe import Found, Material, Observer, Progress, Subject, measure
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "q_filters")
@dataclass(frozen=True)
class QFilters(Evict):
    """Scores a key by its projection on the principal direction of the head's queries, on the side where they lie.

    Calibrated, the direction is that of the model's queries on other texts (`query_calibration`), and no query of the
    prompt is looked at; else that of the queries at hand.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    memory: without a calibration, last queries kept across decode steps; a longer prompt chunk gives all of its own.
    """

    memory: Positive = 128

    needs = frozenset({"keys", "queries", "calibration"})
    calibrates = {"direction": CalibrationTensor("d", "the principal direction of the queries", "queries")}
    card = Card(
        title="Q-Filters",
        paper="Q-Filters: Leveraging QK Geometry for Efficient Key-Value Cache Compression, arXiv 2503.02812, "
        "section 3.2",
        query_aware=True,
        calibrated=True,
        frees_memory=True,
        chunking="approximate",
        forgets="tokens whose keys point away from where the head's queries point on average",
        deviations="without a calibration (`direction`) the direction is that of the queries at hand, and the method "
        "is query-aware; with it, it is not. Sinks and recent tokens are protected",
    )

    @property
    def last_queries(self) -> int:
        """The last `memory` queries."""
        return self.memory

    def score(self, view: View) -> torch.Tensor:
        """Projection [h, n] of each key on the direction of its head."""
        direction = view.calibration.get("direction")
        if direction is None:
            queries = view.queries.double()
            direction = principal(queries.mT @ queries, queries.sum(2))
        return (view.keys.float() @ direction.to(view.keys.device, torch.float32)[..., None])[..., 0]

    def plain(self, view: View) -> torch.Tensor:
        """The same by singular values, one query head at a time."""
        rows = []
        for head in range(len(view.heads)):
            first = []
            for queries in view.queries[head].double():
                vector = torch.linalg.svd(queries, full_matrices=False).Vh[0]
                first.append(vector if float((queries @ vector).sum()) >= 0 else -vector)
            direction = view.calibration.get("direction", torch.stack(first).mean(0)[None].expand(len(view.heads), -1))
            rows.append([float(key.double() @ direction[head].double()) for key in view.keys[head]])
        return torch.tensor(rows, dtype=torch.float64)


def principal(products: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The direction [..., d] of most of the queries, averaged over the query group.

    products: sum of q q^T, [..., g, d, d]; total: sum of q, [..., g, d], on whose side the direction lies.
    """
    vectors = torch.linalg.eigh(products)[1][..., -1]
    side = (vectors * total).sum(-1, keepdim=True)
    return torch.where(side >= 0, vectors, -vectors).mean(-2)


@dataclass(frozen=True, eq=False)
class _Directions(Observer):
    """Adds up q q^T and q by layer, KV head and query head, in float64."""

    by_head: tuple[int, int]  # layers, KV heads
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        queries, shape = view.queries.double(), self.by_head
        for what, adding in (("products", queries.mT @ queries), ("total", queries.sum(2))):
            sums = self.sums.setdefault(what, torch.zeros(*shape, *adding.shape[1:], dtype=torch.float64))
            sums[view.layer, list(view.heads)] += adding.cpu()


def query_calibration(subject: Subject, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plan tensor `q_filters.direction` [layers, kv_heads, d]: principal direction of the queries as they are used,
    after rotation, on the side where their mean lies, averaged over the query group (2503.02812, section 3.2).

    documents: ids [1, n] each, of the kind the model will read. Sliding layers, where nothing is evicted, get zeros.
    """
    directions = _Directions(subject.geometry.by_head)
    for letter in ("d", "g"):
        subject.geometry.size(letter)  # refused before any work
    subject.observe(directions, documents)
    products, total = directions.sums["products"], directions.sums["total"]
    found = principal(products, total)
    found[products.abs().amax((2, 3, 4)) == 0] = 0
    return {"q_filters.direction": found.float()}


@measure("queries", cost=125)
def measured_queries(material: Material, progress: Progress) -> Found:
    """Principal direction of each KV head's queries (Q-Filters)."""
    return {}, query_calibration(material.subject, material.documents)
