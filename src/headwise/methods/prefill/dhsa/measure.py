"""Training DHSA's network, which foretells from keys where chunks of a prompt should begin, as plan tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.forms import Causal
from headwise.methods.chunks import SIDE, both_sides, changes, foretold
from headwise.observe import Found, Material, Observer, Progress, Subject, measure, trained_layers

UNITS = 32  # hidden units of the network
TAIL = 64  # last tokens of a document that are no lesson, as few queries come after them
MOST = 2048  # tokens of a document that are a lesson, evenly spread


@dataclass(frozen=True, eq=False)
class Cuts:
    """Tokens of a document in one layer: sides [h, m, 4 d + 3], what the network sees, and changes [h, m], what it
    should say."""

    sides: torch.Tensor
    changes: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Watcher(Observer):
    """Adds up the attention that tokens get while a document is read, and writes lessons, by layer."""

    needs = frozenset({"keys", "queries", "rope"})
    mass: dict[int, torch.Tensor] = field(default_factory=dict)
    by_layer: dict[int, list[Cuts]] = field(default_factory=dict)

    def look(self, view: View) -> None:
        mass = column_mass(view.queries, view.keys, Causal(), view.scoring)
        if (before := self.mass.pop(view.layer, None)) is not None:
            mass[:, : before.shape[1]] += before
        if self.ends(view):
            self.by_layer.setdefault(view.layer, []).append(lesson(view, mass))
        else:
            self.mass[view.layer] = mass


def lesson(view: View, mass: torch.Tensor) -> Cuts:
    """What a document shows: how the attention `mass [h, n]` of all its queries changes from token to token."""
    stop = max(SIDE + 1, view.count - TAIL)
    known = torch.arange(SIDE, stop, -(-(stop - SIDE) // MOST), device=mass.device)
    return Cuts(both_sides(view, known), changes(mass)[:, known])


def dhsa_calibration(
    subject: Subject, documents: Sequence[torch.Tensor], steps: int = 200, rate: float = 1e-2
) -> dict[str, torch.Tensor]:
    """Plan tensors `dhsa.hidden` [L, h, 4 d + 3, u] and `dhsa.out` [L, h, u]: a network for each KV head.

    documents: ids [1, n] each, longer than 68 tokens, of the kind the model will read. Only the networks are trained,
    by Adam at `rate`, `steps` steps of one document each (2510.24606). Sliding layers keep untrained ones, which cut
    nothing in particular and are never asked.
    """
    geometry, watcher = subject.geometry, _Watcher()
    width = 4 * geometry.size("d") + 3  # refused before any work
    subject.observe(watcher, documents)
    start = {name: x.to(subject.device) for name, x in untrained(geometry.by_head[1], width).items()}
    found = trained_layers(start, geometry.kv_heads, watcher.by_layer, cut_loss, steps, rate)
    return {f"dhsa.{name}": one for name, one in found.items()}


def untrained(heads: int, width: int) -> dict[str, torch.Tensor]:
    """Where training starts: the same random weights for every head."""
    random = torch.Generator().manual_seed(0)
    hidden, out = (torch.randn(size, UNITS, generator=random) / size**0.5 for size in (width, UNITS))
    return {"hidden": hidden.repeat(heads, 1, 1), "out": out[0].repeat(heads, 1)}


def cut_loss(lesson: Cuts, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error of the foretold changes, sum over heads, whose networks do not share weights."""
    return (foretold(lesson.sides, weights) - lesson.changes).square().mean(1).sum()


@measure("dhsa", cost=223)
def measured_dhsa(material: Material, progress: Progress) -> Found:
    """Networks that foretell where chunks of keys begin, trained (DHSA)."""
    return {"steps": material.block_steps}, dhsa_calibration(material.subject, material.documents, material.block_steps)
