"""What selection methods want to know of a model's keys and queries before they meet a prompt, as plan tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from headwise.attention.view import View
from headwise.geometry import Geometry
from headwise.observe import Found, Material, Observer, Progress, Subject, measure
from headwise.plan import Plan
from headwise.shapes import Rope


@dataclass(frozen=True, eq=False)
class _Moments(Observer):
    """Adds up, by layer and KV head in float64: k k^T and k as stored and before rotation, tokens, and of each
    channel |q_c|, mean over the group, and |k_c|."""

    geometry: Geometry
    ropes: tuple[Rope | None, ...] | None
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        queries = view.queries.double()
        new = slice(view.count - queries.shape[2], view.count)
        keys = view.keys[:, new].double()
        rope = self.ropes[view.layer] if self.ropes is not None else None
        still = keys if rope is None else rope.unrotate(view.keys[:, new], view.positions[:, new]).double()
        adding = {
            "spread": keys.mT @ keys,
            "keys": keys.sum(1),
            "still_spread": still.mT @ still,
            "still_keys": still.sum(1),
            "query_sizes": queries.abs().mean(1).sum(1),
            "key_sizes": keys.abs().sum(1),
            "tokens": torch.full((len(view.heads),), keys.shape[1], dtype=torch.float64, device=keys.device),
        }
        shape = self.geometry.by_head
        for what, sums in adding.items():
            total = self.sums.setdefault(what, torch.zeros(*shape, *sums.shape[1:], dtype=torch.float64))
            total[view.layer, list(view.heads)] += sums.cpu()


def key_calibration(subject: Subject, documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plan tensors `loki.basis` [L, h, d, d] (principal directions after rotation, as columns, the largest variance
    first) and `double_sparsity.strength` [L, h, d] (mean |q_c| times mean |k_c|); where the model's rotation is known
    also `unrotated_basis` [L, h, d, d], the directions before it.

    documents: ids [1, n] each, of the kind the model will read. Loki (2406.02542, section 3), Double Sparsity
    (2408.07092, section 3.1). Sliding layers, where nothing is selected, get an identity basis and equal strengths.
    """
    subject.geometry.size("d")  # refused before any work
    moments = _Moments(subject.geometry, subject.ropes)
    subject.observe(moments, documents)
    sums = moments.sums
    unseen = (sums["tokens"] == 0)[..., None]
    strength = sums["query_sizes"] * sums["key_sizes"] / sums["tokens"].clamp(min=1)[..., None] ** 2
    found = {
        "loki.basis": _directions(sums["spread"], sums["keys"], sums["tokens"]),
        "double_sparsity.strength": strength.masked_fill(unseen, 1.0).float(),
    }
    if subject.ropes is not None:
        found["unrotated_basis"] = _directions(sums["still_spread"], sums["still_keys"], sums["tokens"])
    return found


def _directions(squares: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Principal directions [L, h, d, d] from sums of k k^T, of k and of tokens; the identity where there are none."""
    count = tokens.clamp(min=1)[..., None]
    mean = keys / count
    spread = squares / count[..., None] - mean[..., None] * mean[..., None, :]
    spread[tokens == 0] = torch.eye(spread.shape[-1], dtype=torch.float64)
    return torch.linalg.eigh(spread)[1].flip(-1).float()


def calibrated(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> Plan:
    """The plan with calibration tensors added."""
    return replace(plan, calibration={**plan.calibration, **tensors})


@measure("keys", cost=125)
def measured_keys(material: Material, progress: Progress) -> Found:
    """Principal directions of keys before and after rotation, strong channels."""
    return {}, key_calibration(material.subject, material.documents)
