"""DuoAttention's gates: how much of a KV head's full attention answering from far away needs, found by training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from headwise.observe import (
    Attention,
    Found,
    GateTraining,
    LayerAttention,
    Material,
    Progress,
    Recall,
    Subject,
    check_recalls,
    finite,
    measure,
)


def duo_gates(
    subject: Subject,
    recalls: Sequence[Recall],
    training: GateTraining | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Gates, float32 [layers, kv_heads] from 0 (streams) to 1 (retrieves); DuoAttention, 2410.10819, section 2.2.

    A head puts out gate * full + (1 - gate) * streaming attention. Only gates are trained: for final hidden states like
    the dense model's where it is about to say a passkey, and for small gates. Gates of sliding layers stay 1. One
    recall a step, in turn, all its questions at once; memory is linear in its length, and of one layer's activations.
    (The authors train on lengths in even steps from 1,000 tokens up: documents may be shorter than those read later.)
    """
    check_recalls(recalls)
    training = training or GateTraining()
    texts = [recall.with_answers() for recall in recalls]
    with torch.no_grad():
        dense = [subject.hidden(ids, places, LayerAttention.full) for ids, places in texts]
    gates = torch.ones(subject.geometry.by_head, device=subject.device, requires_grad=True)
    optimizer = torch.optim.AdamW([gates], lr=training.rate, weight_decay=0.0)
    for step in range(training.steps):
        ids, places = texts[step % len(texts)]
        with subject.recomputed():
            found = subject.hidden(ids, places, _mixing(gates, training))
            distance = (found - dense[step % len(texts)]).float().square().mean()
            loss = distance + training.weight * gates.abs().mean()
            gates.grad = finite(torch.autograd.grad(loss, gates)[0], "DuoAttention's gates")
        for group in optimizer.param_groups:
            group["lr"] = training.rate * _rise_and_fall(step, training.steps)
        optimizer.step()
        with torch.no_grad():
            gates.clamp_(0, 1)
        if progress is not None:
            progress(step + 1, training.steps)
    return gates.detach().cpu()


def _rise_and_fall(step: int, steps: int) -> float:
    fifth = max(1, steps // 5)
    return min(1.0, max((step + 1) / fifth, 0.1), max((steps - step) / fifth, 0.1))


def _mixing(gates: torch.Tensor, training: GateTraining) -> Attention:
    """Attention of the mixture: each KV head's full and streaming outputs by its gate."""

    def attention(one: LayerAttention) -> torch.Tensor:
        full = one.full()
        if one.window is not None:
            return full
        near = one.streaming(training.sinks, training.recent)
        heads = one.k.shape[1]
        gate = gates[one.layer, :heads].to(one.q.dtype).repeat_interleave(one.q.shape[1] // heads)[:, None, None]
        return gate * full + (1 - gate) * near

    return attention


@measure("gates", cost=2405)
def measured_gates(material: Material, progress: Progress) -> Found:
    """Gates between full and streaming attention, trained (DuoAttention)."""
    gates = duo_gates(material.subject, material.trained or material.recalls, material.training, progress)
    return asdict(material.training), {"duo.gates": gates}
