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

from headwise.attention import attend
from headwise.calibrate.answers import Answers
from headwise.forms import Causal, Window
from headwise.kernels.dispatch import only
from headwise.observe import finite
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import DECODE_TOKENS, Cache, PreTrainedModel
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked
from headwise.seams.transformers.replay import Call, Recording, replay


@dataclass(frozen=True)
class Trace:
    """One question with its answer under dense attention: the calls of all layers, and by layer the gradient
    [1, H, t, e], in nats by answer token, of the answer's loss with respect to what the layer's attention gave."""

    calls: tuple[Call, ...]
    gradients: tuple[torch.Tensor, ...]


class _Tangent(Cache):
    """Dense attention after a document's calls that gradients pass through. Holds nothing of its own."""

    def __init__(self, model: PreTrainedModel, recording: Recording) -> None:
        super().__init__(model)
        self.document = recording.calls
        self.calls: list[Call] = []
        self.probes: list[torch.Tensor] = []

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """The document's tokens."""
        return self.document[0].k.shape[2]

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """Dense attention, plus a zero that the gradient is taken of."""
        before = self.document[layer]
        keys, values = torch.cat((before.k, k), 2)[0], torch.cat((before.v, v), 2)[0]
        where = Causal() if asked.window is None else Window(asked.window - 1)
        grouped = q[0].unflatten(0, (keys.shape[0], -1))
        with only("reference"):
            told = attend(grouped, keys, values, where, asked.scoring).out.flatten(0, 1)[None]
        self.calls.append(Call(layer, q.detach(), k.detach(), v.detach(), asked, told.detach()))
        self.probes.append(torch.zeros_like(told, requires_grad=True))
        return told + self.probes[-1]


def traces(model: PreTrainedModel, answers: Answers) -> Iterator[Trace]:
    """Every question of a document with its answer, differentiated once."""
    for question, answer in answers.recall.asked:
        tangent, ids = _Tangent(model, answers.recording), torch.cat((question, answer), dim=1)
        logits = forward(model, tangent, ids[:, :-1]).logits[0, -answer.shape[1] :]
        loss = cross_entropy(logits.float(), answer[0])
        gradients = torch.autograd.grad(loss, tangent.probes)
        yield Trace(tuple(tangent.calls), tuple(finite(x, f"layer {i}'s attention") for i, x in enumerate(gradients)))


def harm(model: PreTrainedModel, answers: Answers, asked: Sequence[Trace], plan: Plan, seed: int = 0) -> torch.Tensor:
    """Estimated nats by answer token, float32 [layers, kv_heads], that each head alone costs under `plan`.

    The cache is made by all heads at once, each from its layer's exact inputs; the answers' calls are read from it.
    """
    cache = Cache(model, plan, seed=seed)
    replay(model, answers.recording, cache)
    heads, found = cache.seam.geometry.kv_heads, torch.zeros(cache.seam.geometry.by_head)
    for trace in asked:
        fork = cache.fork()
        for start in range(0, trace.calls[0].q.shape[2], DECODE_TOKENS):
            piece = slice(start, start + DECODE_TOKENS)
            for call, gradient in zip(trace.calls, trace.gradients, strict=True):
                q, k, v = (x[:, :, piece] for x in (call.q, call.k, call.v))
                with torch.no_grad():
                    out = fork.attend(call.layer, q, k, v, None, call.asked)
                moved = ((out - call.out[:, :, piece]).float() * gradient[:, :, piece].float()).sum(-1)[0]
                count = heads[call.layer]
                found[call.layer, :count] += moved.unflatten(0, (count, -1)).sum(1).abs().sum(-1).cpu()
    return found / len(asked)


def additive(plan: Plan, losses: dict[Recipe, torch.Tensor]) -> float:
    """The loss predicted for a plan: the sum of what its heads cost alone. losses [layers, kv_heads] by recipe."""
    rows = enumerate(plan.recipes)
    return sum(float(losses[recipe][layer, head]) for layer, row in rows for head, recipe in enumerate(row))
