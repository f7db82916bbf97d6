"""Which KV heads can do with local tokens, told from the keys' mean and covariance (QAdA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.errors import HeadwiseError
from headwise.forms import Causal, Scoring
from headwise.kernels.reference.scores import score_blocks
from headwise.observe import Found, Material, Observer, Progress, Subject, measure

SINKS, LOCAL = 4, 64  # tokens that count as local: the first ones and the latest
WITNESSES = 256  # last queries of each document that are judged


@dataclass(frozen=True)
class Masses:
    """By query [..., t]: the log-mass of the local tokens, the exact one of the others, and the predicted one."""

    local: torch.Tensor
    far: torch.Tensor
    predicted: torch.Tensor


def log_masses(q: torch.Tensor, k: torch.Tensor, scale: float, sinks: int = SINKS, local: int = LOCAL) -> Masses:
    """Log-masses [h, g, t] of queries [h, g, t, d], the last t of the tokens with keys [h, n, d].

    predicted: log N + q.mu / sqrt(d) + q^T Sigma q / (2 d), with mu and Sigma of the N keys that are not local for the
    first of the queries (QAdA, 2502.09647). -inf where nothing is far. Memory is a block of queries times n.
    """
    q, k = q.float(), k.float()
    t, n = q.shape[2], k.shape[1]
    at = torch.arange(n - t, n, device=q.device)[:, None]
    blocks = []
    for rows, s, past in score_blocks(q, k, Causal(), Scoring(scale)):
        keys = torch.arange(s.shape[3], device=q.device)
        near = (keys < sinks) | (at[rows] - keys < local)
        blocks.append([s.masked_fill(~seen, -torch.inf).logsumexp(-1) for seen in (near & past[0], ~near & past[0])])
    masses = [torch.cat(side, 2) for side in zip(*blocks, strict=True)]
    far = k[:, sinks : max(sinks, n - t - local + 1)]
    mean = far.mean(1) if far.shape[1] else torch.zeros_like(k[:, 0])
    centred = far - mean[:, None]
    spread = centred.mT @ centred / max(1, far.shape[1])
    counts = (at[:, 0] - local + 1 - sinks).clamp(min=0).log()
    linear = torch.einsum("hgtd,hd->hgt", q, mean) * scale
    square = torch.einsum("hgtd,hde,hgte->hgt", q, spread, q) * (scale**2 / 2)
    return Masses(masses[0], masses[1], counts + linear + square)


@dataclass(frozen=True, eq=False)
class _Locality(Observer):
    """Adds up by layer and KV head: queries predicted to be local, queries that are, and those judged."""

    share: float
    found: torch.Tensor  # [L, h, 3]

    def look(self, view: View) -> None:
        if view.scoring != Scoring(view.scale):
            raise HeadwiseError(
                "the model caps its scores or has sink logits, which the prediction of locality does not know; leave "
                "it out"
            )
        if not self.ends(view):
            return
        masses = log_masses(view.queries[:, :, -WITNESSES:], view.keys, view.scale)
        predicted = torch.sigmoid(masses.local - masses.predicted) >= self.share
        exact = torch.sigmoid(masses.local - masses.far) >= self.share
        counts = torch.stack((predicted, exact, torch.ones_like(exact)), -1).sum((1, 2))
        self.found[view.layer, list(view.heads)] += counts.cpu()


def head_locality(subject: Subject, documents: Sequence[torch.Tensor], share: float = 0.9) -> dict[str, torch.Tensor]:
    """`locality_predicted` and `locality` [layers, kv_heads]: the share of the last queries of each document [1, n]
    that give `share` of their attention to sinks and local tokens, as predicted from the other keys and in truth.

    A head near 1 is local, one near 0 looks far. Sliding layers are local: 1.
    """
    locality = _Locality(share, torch.zeros(*subject.geometry.by_head, 3))
    subject.observe(locality, documents)
    predicted, exact, judged = locality.found.unbind(-1)
    unseen = judged == 0
    return {
        "locality_predicted": (predicted / judged.clamp(min=1)).masked_fill(unseen, 1.0),
        "locality": (exact / judged.clamp(min=1)).masked_fill(unseen, 1.0),
    }


@measure("locality", cost=158)
def measured_locality(material: Material, progress: Progress) -> Found:
    """How often local tokens suffice, predicted and in truth (QAdA)."""
    return {}, head_locality(material.subject, material.documents)
