"""Fitting the linear heads of Neural Attention Search to what a frozen model attends to, as plan tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.reference import probabilities, score_blocks, wide
from headwise.attention.view import View
from headwise.attention.where import Causal
from headwise.calibrate.look import Observer, observe
from headwise.choose import choose_mask, enough
from headwise.engine.hf import PreTrainedModel, attach
from headwise.methods.roles import GLOBAL, LOCAL, NEAR

STEPS, DECAY = 60, 1e-3  # of LBFGS, and its weight decay: a linear head on some thousand keys needs no more


def label(view: View, window: int, share: float) -> torch.Tensor:
    """The type [h, n] that each token of a whole prompt should have had.

    Global: the fewest tokens that hold `share` of the attention paid over more than `window` tokens. Local: of the
    others, those to which less than 1 - `share` of their own attention comes after the next global one.
    """
    n, heads = view.count, len(view.heads)
    far, total = torch.zeros(heads, n), torch.zeros(heads, n)
    for at, paid in _paid(view):
        far += paid.masked_fill(at - torch.arange(paid.shape[2]) <= window, 0.0).sum(1)
        total += paid.sum(1)
    keeps = choose_mask(far, enough(far, share), torch.zeros_like(far, dtype=torch.bool))
    coming = torch.where(keeps, torch.arange(n), n).flip(1).cummin(1).values.flip(1)  # the next global token
    late = torch.zeros(heads, n)
    for at, paid in _paid(view):
        late += paid.masked_fill(at <= coming[:, None], 0.0).sum(1)
    found = torch.full((heads, n), NEAR).masked_fill(late <= (1 - share) * total, LOCAL)
    return found.masked_fill(keeps, GLOBAL)


def _paid(view: View) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Attention [h, rows, n] of a block of queries, mean over the group, and their places [rows, 1]."""
    n = view.count
    for rows, s, visible in score_blocks(wide(view.queries), wide(view.keys), Causal(), view.scale, view.softcap):
        paid = probabilities(s, visible)[0].mean(1)
        yield torch.arange(rows.start, rows.stop)[:, None], torch.nn.functional.pad(paid, (0, n - paid.shape[2]))


@dataclass(frozen=True, eq=False)
class _Lessons(Observer):
    """Notes, by layer, keys before rotation [h, n, d] and the types [h, n] that they should say."""

    needs = frozenset({"keys", "queries", "rope"})
    window: int = 256
    share: float = 0.9
    by_layer: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    def look(self, view: View) -> None:
        keys = view.keys if view.rope is None else view.rope.unrotate(view.keys, view.positions)
        self.by_layer.setdefault(view.layer, []).append((keys.float(), label(view, self.window, self.share)))


def token_types(
    model: PreTrainedModel, documents: Sequence[torch.Tensor], window: int = 256, share: float = 0.9
) -> dict[str, torch.Tensor]:
    """Plan tensors `nats.head`, `nats_prefill.head` and `nats_read.head`, the same [L, h, d + 1, 3] in each.

    documents: ids [1, n] each, of several windows, of the kind the model will read; attention is weighed by blocks of
    queries. window, share: see `label`. The paper trains the heads with the model (2502.13251, section 3), this fits
    them to a frozen model's attention. Sliding layers, where nothing is evicted, get zeros.
    """
    geometry, lessons = attach(model).geometry, _Lessons(window=window, share=share)
    observe(model, lessons, documents)
    head = torch.zeros(geometry.layers, geometry.kv_heads, geometry.key_width + 1, 3)
    for layer, taught in lessons.by_layer.items():
        keys, types = (torch.cat(side, dim=1) for side in zip(*taught, strict=True))
        head[layer] = torch.stack([fitted(*one) for one in zip(keys, types, strict=True)])
    return {f"{name}.head": head.clone() for name in ("nats", "nats_prefill", "nats_read")}


def fitted(keys: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The linear head [d + 1, 3] of keys [n, d] whose types [n] it is to say: logistic regression."""
    mean, spread = keys.mean(0), keys.std(0).clamp_min(1e-6)
    scaled = torch.cat(((keys - mean) / spread, torch.ones(len(keys), 1)), dim=1)
    weights = torch.zeros(scaled.shape[1], 3, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = torch.nn.functional.cross_entropy(scaled @ weights, types) + DECAY * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    slope = weights.detach()[:-1] / spread[:, None]
    return torch.cat((slope, weights.detach()[-1:] - mean[None] @ slope))
