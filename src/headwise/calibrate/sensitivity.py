"""What it costs to give one KV head a recipe: a first-order estimate, for all heads from one backward pass an answer.

A recipe changes a head's output by delta, given the exact queries, keys and values of its layer. The gradient of the
answer's negative log likelihood with respect to that output, of the dense model, weighs it: token by token the loss
moves by <gradient, delta>, whose absolute values are summed. Signed, the tokens cancel; squared, one token decides.
The gradient of outputs is as in attribution patching (2310.10348, section 2), taken to orders of loss, not to circuits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from headwise.calibrate.answers import Answers
from headwise.calibrate.shelf import Batch, Mixture, Shelf
from headwise.kernels.dispatch import only
from headwise.observe import finite
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked
from headwise.seams.transformers.replay import Call

ROWS = 2  # questions that are differentiated at once: what their attention keeps for it grows with the document


@dataclass(frozen=True)
class Trace:
    """Questions with their answers under dense attention: what every layer was called with after the document, and by
    layer the gradient [b, H, t, e], in nats by answer token, of each row's loss with respect to what it gave."""

    calls: tuple[Call, ...]
    gradients: tuple[torch.Tensor, ...]


class _Tangent(Mixture):
    """Attention after a document with a zero in every layer's output that the gradient is taken of."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf, Plan.uniform(attach(shelf.model).geometry, ""))
        self.calls: list[Call] = []
        self.probes: list[torch.Tensor] = []

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """Dense attention, plus the zero."""
        with only("reference"):
            told = super().attend(layer, q, k, v, mask, asked)
        self.calls.append(Call(layer, q.detach(), k.detach(), v.detach(), asked, told.detach()))
        self.probes.append(torch.zeros_like(told, requires_grad=True))
        return told + self.probes[-1]


def traces(answers: Answers) -> Iterator[Trace]:
    """Every question that counts, with its answer, differentiated once."""
    for batch in answers.batches:
        for part in batch.only([row for row in batch.rows if answers.counted[row]]).split(ROWS):
            tangent = _Tangent(answers.shelf)
            logits = forward(answers.shelf.model, tangent, part.ids, logits_to_keep=part.places).logits
            gradients = torch.autograd.grad(_loss(answers, part, logits), tangent.probes)
            told = tuple(finite(one, f"layer {layer}'s attention") for layer, one in enumerate(gradients))
            yield Trace(tuple(tangent.calls), told)


def _loss(answers: Answers, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Nats by answer token, summed over rows, of logits [b, places, vocab]."""
    said = zip(batch.rows, batch.said_of(logits), strict=True)
    return torch.stack([cross_entropy(own.float(), answers.recall.asked[row][1][0]) for row, own in said]).sum()


def harm(answers: Answers, asked: Sequence[Trace], recipe: Recipe) -> torch.Tensor:
    """Estimated nats by answer token, float32 [layers, kv_heads], that each head alone costs under `recipe`.

    The cache is made by all heads at once, each from its layer's exact inputs; the answers' calls are read from it.
    """
    geometry = attach(answers.shelf.model).geometry
    mixture, found, rows = Mixture(answers.shelf, Plan.uniform(geometry, recipe)), torch.zeros(geometry.by_head), 0
    for trace in asked:
        rows += len(trace.calls[0].q)
        for call, gradient in zip(trace.calls, trace.gradients, strict=True):
            with torch.no_grad():
                out = mixture.attend(call.layer, call.q, call.k, call.v, None, call.asked)
            moved = ((out - call.out).float() * gradient.float()).sum(-1)
            count = geometry.kv_heads[call.layer]
            found[call.layer, :count] += moved.unflatten(1, (count, -1)).sum(2).abs().sum((0, 2)).cpu()
    return found / rows
