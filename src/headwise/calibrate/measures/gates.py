"""DuoAttention's gates: how much of a KV head's full attention answering from far away needs, found by training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch.nn.functional import scaled_dot_product_attention

from headwise.attention import attend
from headwise.calibrate.layerwise import finite, recomputed
from headwise.calibrate.material import GateTraining, Material, Recall, check_recalls
from headwise.calibrate.measures import Found, measure
from headwise.forms import Where, Window
from headwise.seams.transformers.cache import Attention, PreTrainedModel, Through, attach
from headwise.seams.transformers.drive import Progress
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked, attend_once


def duo_gates(
    model: PreTrainedModel,
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
    sizes = attach(model).geometry.by_head
    texts = [told(recall) for recall in recalls]
    with torch.no_grad():
        dense = [_hidden(model, ids, places, full_attention) for ids, places in texts]
    gates = torch.ones(sizes, device=model.device, requires_grad=True)
    optimizer = torch.optim.AdamW([gates], lr=training.rate, weight_decay=0.0)
    for step in range(training.steps):
        ids, places = texts[step % len(texts)]
        with recomputed(model):
            found = _hidden(model, ids, places, _mixing(gates, training))
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


def told(recall: Recall) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [1, n] of a document with all its questions and answers, and the places from which answers are said."""
    pieces, places, at = [recall.ids], [], recall.ids.shape[1]
    for question, answer in recall.asked:
        pieces += [question, answer]
        at += question.shape[1]
        places.append(torch.arange(at - 1, at + answer.shape[1] - 1))
        at += answer.shape[1]
    return torch.cat(pieces, dim=1), torch.cat(places)


def _hidden(model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor, attention: Attention) -> torch.Tensor:
    """Final hidden states [places, width] of a model that attends as told."""
    out = forward(model.base_model, Through(model, attention), ids)
    return out.last_hidden_state[0, places]


def _mixing(gates: torch.Tensor, training: GateTraining) -> Attention:
    """Attention of the mixture: each KV head's full and streaming outputs by its gate."""

    def attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> torch.Tensor:
        full = full_attention(layer, q, k, v, asked)
        if asked.window is not None:
            return full
        near = streaming_attention(q, k, v, asked, training.sinks, training.recent)
        gate = gates[layer, : k.shape[1]].to(q.dtype).repeat_interleave(q.shape[1] // k.shape[1])[:, None, None]
        return gate * full + (1 - gate) * near

    return attention


def full_attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> torch.Tensor:
    """The model's own attention of one sequence, q [1, H, t, d], k [1, h, t, d], v [1, h, t, e] -> [1, H, t, e], with
    gradients in memory linear in t where torch's fused kernel knows the layer's kind."""
    if asked.scoring.softcap is not None or asked.window is not None:
        return attend_once(q, k, v, asked)
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=asked.scoring.scale, enable_gqa=True)


def streaming_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked, sinks: int, recent: int
) -> torch.Tensor:
    """Attention of one sequence to sinks and the latest `recent` tokens, itself among them, differentiable:
    q [1, H, t, d], k [1, h, t, d], v [1, h, t, e] -> [1, H, t, e]. Memory is linear in t."""
    where, tokens, outs = Window(recent - 1, sinks), k.shape[2], []
    for start in range(0, tokens, recent):
        stop = min(start + recent, tokens)
        near = max(min(sinks, start), start - recent + 1)  # sinks that are near are not read twice
        keys, values = (torch.cat((x[:, :, : min(sinks, near)], x[:, :, near:stop]), dim=2) for x in (k, v))
        outs.append(_masked(q[:, :, start:stop], keys, values, where, asked))
    return torch.cat(outs, dim=2)


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: Where, asked: Asked) -> torch.Tensor:
    """Attention of q [1, H, t, d] over few keys k [1, h, n, d], v [1, h, n, e] -> [1, H, t, e], by torch's fused kernel
    where it knows the layer's kind."""
    if asked.scoring.softcap is not None:
        grouped = q[0].unflatten(0, (k.shape[1], -1))
        return attend(grouped, k[0], v[0], where, asked.scoring).out.flatten(0, 1)[None]
    mask = where.dense(q.shape[2], k.shape[2], q.device)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=asked.scoring.scale, enable_gqa=True)


@measure("gates", cost=2405)
def measured_gates(material: Material, progress: Progress) -> Found:
    """Gates between full and streaming attention, trained (DuoAttention)."""
    gates = duo_gates(material.model, material.trained or material.recalls, material.training, progress)
    return asdict(material.training), {"duo.gates": gates}
