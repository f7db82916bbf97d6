"""Fitting KVzap's linear maps to a model's KVzip scores, as plan tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from headwise.attention.view import View
from headwise.observe import Found, Material, Observer, Progress, Subject, measure

TOKENS = 2048  # of a document at most: it is read together with its repetition
FEW = 32  # queries looked at together
LEAST = 1e-9  # attention below which a score counts as this
RIDGE = 1e-4  # of a feature's sum of squares, added to it


@dataclass(frozen=True, eq=False)
class _Lessons(Observer):
    """Of a document of `half` tokens read twice in a row: the most attention that its repetition gives each token, and
    the normal equations of the logarithm of that on what is stored of the token, by layer."""

    needs = frozenset({"keys", "values", "queries", "rope"})
    half: int
    best: dict[int, torch.Tensor] = field(default_factory=dict)
    sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def look(self, view: View) -> None:
        repeating = min(max(0, view.seen - self.half), view.queries.shape[2])
        for given in _weights(view, repeating):
            most = given[..., : self.half].amax((1, 2))
            self.best[view.layer] = torch.maximum(self.best.get(view.layer, most), most)
        if self.ends(view):
            told = features(view, self.half)
            wanted = self.best[view.layer].clamp(min=LEAST).log().double()[..., None]
            self.sums[view.layer] = (told.mT @ told).cpu(), (told.mT @ wanted).cpu()


def _weights(view: View, last: int) -> Iterator[torch.Tensor]:
    """What the last queries of a view give all stored tokens, a few queries at a time: [h, g, few, n]."""
    parts = (x[..., -last:, :].split(FEW, -2) for x in (view.queries, view.query_positions[:, None]))
    for queries, positions in zip(*parts, strict=True) if last else ():
        few = {**view.granted, "queries": queries, "query_positions": positions[:, 0]}
        yield replace(view, granted=few).observe(queries.shape[2])


def features(view: View, count: int) -> torch.Tensor:
    """What KVzap's map is told of the first `count` tokens: key before rotation, value, lengths and 1,
    [h, count, d + e + 3]."""
    keys, values = view.keys[:, :count].double(), view.values[:, :count].double()
    lengths = [x.norm(dim=-1, keepdim=True) for x in (keys, values)]
    if view.rope is not None:
        keys = view.rope.unrotate(keys, view.positions[:, :count])
    return torch.cat((keys, values, *lengths, torch.ones_like(lengths[0])), dim=-1)


def surrogate(subject: Subject, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plan tensors `kvzap.key` [layers, kv_heads, d], `kvzap.value` [layers, kv_heads, e] and `kvzap.rest`
    [layers, kv_heads, 3], by least squares over all tokens of the documents.

    documents: ids [1, n] each, of the kind the model will read. Sliding layers, where nothing is evicted, get zeros.
    """
    geometry = subject.geometry
    widths = [geometry.size("d"), geometry.size("e"), 3]  # refused before any work
    sums: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for ids in documents:
        half = ids[:, : min(TOKENS, geometry.max_positions // 2)]
        subject.observe(lessons := _Lessons(half.shape[1]), [torch.cat((half, half), dim=1)])
        for layer, one in lessons.sums.items():
            sums.setdefault(layer, []).append(one)
    found = torch.zeros(*geometry.by_head, sum(widths))
    for layer, parts in sums.items():
        products, wanted = (torch.stack(side).sum(0) for side in zip(*parts, strict=True))
        squares = products.diagonal(dim1=-2, dim2=-1)
        fitted = torch.linalg.solve(products + torch.diag_embed(RIDGE * squares + 1e-12), wanted)
        found[layer, : len(fitted)] = fitted[..., 0].float()
    return dict(
        zip(("kvzap.key", "kvzap.value", "kvzap.rest"), (x.clone() for x in found.split(widths, -1)), strict=True)
    )


@measure("kvzap", cost=250)
def measured_surrogate(material: Material, progress: Progress) -> Found:
    """Linear maps that foretell KVzip's scores, fitted to a repetition of each document (KVzap)."""
    return {}, surrogate(material.subject, material.documents)
