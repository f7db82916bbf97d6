"""MoA's estimate: what shortening the span of a KV head would cost, to first order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from headwise.forms import Causal
from headwise.kernels.reference.scores import probabilities, score_blocks, wide
from headwise.methods.evict.moa.choice import BLOCK
from headwise.observe import Attention, LayerAttention, Recall, Subject, finite

SURE = 0.01  # of a query's attention at least counts as not on one key, as the estimate divides by it


Summed = Callable[[torch.Tensor], torch.Tensor]
Note = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


class _Gradient(torch.autograd.Function):
    """What a layer's attention gave, as it is; on the way back `note` is shown the layer's q [1, H, t, d],
    k [1, h, t, d], v [1, h, t, e] and the gradient [1, H, t, e]."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, anchor: torch.Tensor, note: Note, *qkv: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*qkv)
        ctx.note = note
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.note(*ctx.saved_tensors, gradient)
        return gradient, torch.zeros_like(gradient[0, 0, 0, 0]), None, None, None, None


def answer_loss(subject: Subject, recall: Recall, attention: Attention) -> torch.Tensor:
    """Nats per answer token, a scalar with its gradients, of a document with all its questions and answers, when layers
    attend by `attention`."""
    ids, places = recall.with_answers()
    return cross_entropy(subject.logits(ids, places, attention).float(), ids[0, places + 1])


def span_losses(subject: Subject, recall: Recall, summed: Summed = torch.abs) -> torch.Tensor:
    """Estimated loss [layers, kv_heads, blocks + 1], nats per answer token, when a head sees the first block and its
    latest s blocks of 64 tokens, for s from 0 on; 0 where that is everything.

    MoA (2406.14909, section 4.1): masking the entry ij of an attention matrix costs A_ij / (1 - A_ij) * (g_i . A_i -
    g_ij) to first order, with g = dL/dA = dL/dO . v_j. `summed` of it is added up over the entries that a span masks
    and over query heads: its size, as in the released code, since signs of a loss that is near its least are chance.
    One forward and backward; each layer is computed again on the way back and forgotten once its losses are known:
    memory is every layer's input, and one layer's activations.
    """
    geometry, anchor = subject.geometry, torch.zeros((), device=subject.device, requires_grad=True)
    found: dict[int, torch.Tensor] = {}

    def attention(one: LayerAttention) -> torch.Tensor:
        def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gradient: torch.Tensor) -> None:
            shown = replace(one, q=q, k=k, v=v)
            found[one.layer] = _layer_losses(shown, finite(gradient, f"layer {one.layer}'s attention"), summed)

        return _Gradient.apply(one.full(), anchor, note, one.q, one.k, one.v)

    with subject.recomputed():
        torch.autograd.grad(answer_loss(subject, recall, attention), anchor)
    return geometry.gathered(found)


def _layer_losses(one: LayerAttention, gradient: torch.Tensor, summed: Summed) -> torch.Tensor:
    """One layer's losses [h, blocks + 1] from what it attends with and dL/dO [1, H, t, e]."""
    heads, tokens = one.k.shape[1], one.k.shape[2]
    blocks = -(-tokens // BLOCK)
    if one.window is not None:
        return torch.zeros(heads, blocks + 1)
    queries, upstream = (wide(x[0]).unflatten(0, (heads, -1)) for x in (one.q, gradient))
    keys, values = wide(one.k[0]), wide(one.v[0])
    by_distance = torch.zeros(heads, blocks)
    for rows, s, visible in score_blocks(queries, keys, Causal(), one.scoring):
        p = probabilities(s, visible, one.scoring.sinks)[0]
        pull = torch.einsum("hgte,hne->hgtn", upstream[:, :, rows], values[:, : p.shape[3]])
        mean = (pull * p).sum(-1, keepdim=True)
        cost = summed(p / (1 - p).clamp(min=SURE) * (mean - pull)).sum(1)  # [h, rows, m]
        at, of = torch.arange(rows.start, rows.stop)[:, None], torch.arange(p.shape[3])
        distance = ((at - of).clamp(min=0) // BLOCK).expand(cost.shape[1:])
        cost = cost.masked_fill(of.to(cost.device) < BLOCK, 0.0).cpu()
        by_distance.index_add_(1, distance.flatten(), cost.flatten(1))
    beyond = by_distance.flip(1).cumsum(1).flip(1)
    return torch.cat((beyond, torch.zeros(heads, 1)), dim=1)
