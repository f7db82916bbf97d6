"""Training the heads of Neural Attention Search with the attention that they allow, the model itself frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headwise.kernels.reference.scores import probabilities, scores
from headwise.methods.roles import GLOBAL, LOCAL, NEAR
from headwise.observe import Attention, LayerAttention, Progress, Subject, finite

LONGEST = 1024  # tokens of a text that heads are trained on, as memory grows with their square


@dataclass(frozen=True)
class TypeTraining:
    """steps: of AdamW at `rate`, one text each. weight: of the mean share of the causal pairs that queries see, beside
    the distance of the final hidden states from the dense model's, as a share of their size."""

    steps: int = 60
    rate: float = 0.02
    weight: float = 1.0


class _Priced(torch.autograd.Function):
    """A mask as it is; on the way back its gradient and `price`, what an entry that is seen costs."""

    @staticmethod
    def forward(ctx: Any, mask: torch.Tensor, price: float) -> torch.Tensor:
        ctx.price = price
        return mask.view_as(mask)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient + ctx.price, None


def trained_heads(
    subject: Subject,
    texts: Sequence[tuple[torch.Tensor, torch.Tensor]],
    start: torch.Tensor,
    window: int,
    training: TypeTraining | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Heads [layers, h, d + 1, 3], trained from `start` (2502.13251, section 3).

    texts: ids [1, n] and the places whose hidden states are to stay the dense model's. Types are drawn by a hard
    Gumbel-softmax with the soft one's gradient; first and last token are global.
    """
    training = training or TypeTraining()
    texts = [(ids[:, :LONGEST], places[places < LONGEST]) for ids, places in texts]
    with torch.no_grad():
        dense = [subject.hidden(ids, places, LayerAttention.full) for ids, places in texts]
    heads = start.to(subject.device).clone().requires_grad_()
    optimizer = torch.optim.AdamW([heads], lr=training.rate, weight_decay=0.0)
    price = training.weight / sum(subject.geometry.kv_heads)
    for step in range(training.steps):
        (ids, places), wanted = texts[step % len(texts)], dense[step % len(texts)]
        with subject.recomputed():
            found = subject.hidden(ids, places, _drawing(subject, heads, window, step, price))
            loss = (found - wanted).float().square().sum() / wanted.float().square().sum()
            heads.grad = finite(torch.autograd.grad(loss, heads)[0], "NAtS's heads")
        optimizer.param_groups[0]["lr"] = training.rate * (1 - step / training.steps)
        optimizer.step()
        if progress is not None:
            progress(step + 1, training.steps)
    return heads.detach().cpu()


def _drawing(subject: Subject, heads: torch.Tensor, window: int, step: int, price: float) -> Attention:
    """Attention that sees what types drawn for this step allow."""

    def attention(one: LayerAttention) -> torch.Tensor:
        if one.window is not None:
            return one.full()
        keys, count = one.k[0].float(), one.k.shape[2]
        if subject.ropes is not None and (rope := subject.ropes[one.layer]) is not None:
            keys = rope.unrotate(keys, torch.arange(count, device=keys.device).expand(keys.shape[:2]))
        head = heads[one.layer, : len(keys)]
        random = torch.Generator().manual_seed(1000 * step + one.layer)  # the same when computed again
        types = drawn_types(keys @ head[:, :-1] + head[:, -1:], random)
        causal = torch.ones(count, count, dtype=torch.bool, device=keys.device).tril()
        mask = _Priced.apply(mask_of(types, window), price / float(causal.sum()))
        return _masked(one, mask * causal)

    return attention


def drawn_types(logits: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """One of three types for each token [h, n, 3], drawn by its logits, with the gradient of its softmax."""
    luck = torch.rand(logits.shape, generator=random).clamp(1e-6, 1 - 1e-6).to(logits.device)
    soft = (logits - (-luck.log()).log()).softmax(-1)
    hard = torch.nn.functional.one_hot(soft.argmax(-1), 3).to(soft.dtype)
    hard[:, [0, -1]] = torch.nn.functional.one_hot(torch.tensor(GLOBAL), 3).to(hard)
    return hard + soft - soft.detach()


def mask_of(types: torch.Tensor, window: int) -> torch.Tensor:
    """What each query sees of each key, [h, n, n], 0 or 1, by types [h, n, 3]; a gradient reaches a token's own type,
    not the global token that ends another's time."""
    count = types.shape[1]
    at = torch.arange(count, device=types.device)
    coming = torch.where(types[..., GLOBAL] > 0.5, at, count)  # ST types are 0 or 1 but for rounding
    coming = torch.nn.functional.pad(coming[:, 1:], (0, 1), value=count).flip(1).cummin(1).values.flip(1)
    alive, near = (x.to(types.dtype) for x in (at[:, None] <= coming[:, None], at[:, None] - at <= window))
    whole, local, short = (types[..., kind][:, None] for kind in (GLOBAL, LOCAL, NEAR))
    return whole + local * alive + short * near


def _masked(one: LayerAttention, mask: torch.Tensor) -> torch.Tensor:
    """Attention [1, H, t, e] whose weights are multiplied by `mask [h, t, t]` and sum, with a sink's, to 1 again."""
    s = scores(one.q[0].unflatten(0, (len(mask), -1)).float(), one.k[0].float(), one.scoring)
    weights, _ = probabilities(s, torch.ones_like(mask[:1], dtype=torch.bool).tril(), one.scoring.sinks)
    beside, weights = 1 - weights.sum(-1, keepdim=True), weights * mask[:, None]
    weights = weights / (weights.sum(-1, keepdim=True) + beside).clamp(min=1e-9)
    return torch.einsum("hgtn,hne->hgte", weights, one.v[0].float()).flatten(0, 1)[None].to(one.q.dtype)
