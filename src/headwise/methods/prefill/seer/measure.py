"""Training SeerAttention's gates on what a frozen model attends to, as plan tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from headwise.attention.byproducts import block_maxima, row_lse
from headwise.attention.view import View
from headwise.forms import Causal
from headwise.methods.prefill.seer import gate_scores, pooled, untrained
from headwise.observe import Found, Material, Observer, Progress, Subject, measure, trained_layers


@dataclass(frozen=True, eq=False)
class Lesson:
    """A piece of a document in one layer: the view without its keys, what the gate sees of it, and `target`, the share
    that each block of queries should give each block of keys, [h, g, query blocks, key blocks]."""

    view: View
    queries: torch.Tensor
    keys: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Lessons(Observer):
    """Writes lessons, by layer."""

    needs = frozenset({"keys", "queries", "rope"})
    size: int = 64
    by_layer: dict[int, list[Lesson]] = field(default_factory=dict)

    def look(self, view: View) -> None:
        about = {"rope": view.rope, "query_positions": view.query_positions}
        target = block_attention(view, self.size)
        lesson = Lesson(replace(view, granted=about), *pooled(view, self.size), target)
        self.by_layer.setdefault(view.layer, []).append(lesson)


def block_attention(view: View, size: int) -> torch.Tensor:
    """The largest attention probability in each pair of blocks of `size`, over the sum of its row of blocks:
    [h, g, query blocks, key blocks] (SeerAttention, 2410.13276, section 3.2)."""
    keys, queries = view.keys.float(), view.queries.float()
    lse = row_lse(queries, keys, Causal(), view.scoring)
    peaks = block_maxima(queries, keys, view.scoring, block=size, below=lse).exp()
    return peaks / peaks.sum(-1, keepdim=True)


def lessons(subject: Subject, documents: Sequence[torch.Tensor], size: int) -> dict[int, list[Lesson]]:
    """What the model attends to in each document, ids [1, n], as it is read, by layer; sliding layers are left out."""
    observer = _Lessons(size=size)
    subject.observe(observer, documents)
    return observer.by_layer


def seer_calibration(
    subject: Subject, documents: Sequence[torch.Tensor], size: int = 64, steps: int = 200, rate: float = 1e-3
) -> dict[str, torch.Tensor]:
    """Plan tensors `seer.query` [L, h, g, d, d] and `seer.key` [L, h, 3 d, d]: gates trained for blocks of `size`.

    documents: ids [1, n] each, of several blocks, of the kind the model will read. Only the gates are trained, by Adam
    at `rate`, `steps` steps of one document each, of long ones of what one piece of at most 2048 tokens shows
    (2410.13276, section 3.2). Sliding layers keep untrained gates.
    """
    geometry = subject.geometry
    sizes = geometry.by_head[1], geometry.size("g"), 1, geometry.size("d")  # refused before any work
    start = untrained(torch.zeros(sizes, device=subject.device))
    taught = lessons(subject, documents, size)
    found = trained_layers(start, geometry.kv_heads, taught, partial(gate_loss, size), steps, rate)
    return {f"seer.{name}": one for name, one in found.items()}


def gate_loss(size: int, lesson: Lesson, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean divergence of the gate from the target, in nats per row of blocks, over all heads.

    Rows in the first quarter of the tokens so far, where there is little to leave out, do not count (as in the
    official training).
    """
    said = gate_scores(lesson.view, size, lesson.queries, lesson.keys, weights).log_softmax(-1)
    tokens = lesson.view.query_positions.shape[0]
    first = max(0, lesson.view.count // 4 - (lesson.view.count - tokens)) // size
    said, target = said[:, :, first:], lesson.target[:, :, first:]
    return (torch.special.xlogy(target, target) - target * said.masked_fill(target == 0, 0.0)).sum(-1).mean()


@measure("seer", cost=247)
def measured_seer(material: Material, progress: Progress) -> Found:
    """Gates of blocks, trained on what each block attends to (SeerAttention)."""
    gates = seer_calibration(material.subject, material.documents, steps=material.block_steps)
    return {"steps": material.block_steps}, gates
