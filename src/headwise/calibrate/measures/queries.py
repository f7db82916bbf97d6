"""Where the queries of each KV head point, measured once per model, as plan tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.calibrate.look import Observer, observe
from headwise.calibrate.material import Material
from headwise.calibrate.measures import Found, measure
from headwise.geometry import Geometry
from headwise.methods.evict.q_filters import principal
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.drive import Progress


@dataclass(frozen=True, eq=False)
class _Directions(Observer):
    """Adds up q q^T and q by layer, KV head and query head, in float64."""

    geometry: Geometry
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        queries, shape = view.queries.double(), self.geometry.by_head
        for what, adding in (("products", queries.mT @ queries), ("total", queries.sum(2))):
            sums = self.sums.setdefault(what, torch.zeros(*shape, *adding.shape[1:], dtype=torch.float64))
            sums[view.layer, list(view.heads)] += adding.cpu()


def query_calibration(model: PreTrainedModel, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plan tensor `q_filters.direction` [layers, kv_heads, d]: principal direction of the queries as they are used,
    after rotation, on the side where their mean lies, averaged over the query group (2503.02812, section 3.2).

    documents: ids [1, n] each, of the kind the model will read. Sliding layers, where nothing is evicted, get zeros.
    """
    directions = _Directions(attach(model).geometry)
    for letter in ("d", "g"):
        directions.geometry.size(letter)  # refused before any work
    observe(model, directions, documents)
    products, total = directions.sums["products"], directions.sums["total"]
    found = principal(products, total)
    found[products.abs().amax((2, 3, 4)) == 0] = 0
    return {"q_filters.direction": found.float()}


@measure("queries", cost=125)
def measured_queries(material: Material, progress: Progress) -> Found:
    """Principal direction of each KV head's queries (Q-Filters)."""
    return {}, query_calibration(material.model, material.documents)
