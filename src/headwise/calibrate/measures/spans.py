"""MoA: what shortening the span of a KV head would cost, to first order, and the spans that a mean density buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from headwise.calibrate.layerwise import finite, recomputed
from headwise.calibrate.material import Material, Recall, check_recalls
from headwise.calibrate.measures import Found, measure
from headwise.calibrate.measures.gates import full_attention, told
from headwise.errors import HeadwiseError
from headwise.forms import Causal
from headwise.kernels.reference.scores import probabilities, score_blocks, wide
from headwise.seams.transformers.cache import Cache, PreTrainedModel, Through, attach
from headwise.seams.transformers.drive import Progress, generate, prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked

BLOCK = 64  # tokens; spans are whole blocks, and the first block is always seen
SURE = 0.01  # of a query's attention at least counts as not on one key, as the estimate divides by it


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


def answer_loss(model: PreTrainedModel, recall: Recall, through: Through) -> torch.Tensor:
    """Nats per answer token, a scalar with its gradients, of a document with all its questions and answers."""
    ids, places = told(recall)
    logits = forward(model, through, ids, logits_to_keep=places).logits[0]
    return cross_entropy(logits.float(), ids[0, places + 1])


def own_answers(model: PreTrainedModel, recall: Recall) -> Recall:
    """The same questions with what the dense model answers, as long as the answers given."""
    cache = Cache(model, "")
    prefill(model, cache, recall.ids)
    asked = tuple((q, generate(model, cache.fork(), q, answer.shape[1])) for q, answer in recall.asked)
    return replace(recall, asked=asked)


def span_losses(model: PreTrainedModel, recall: Recall) -> torch.Tensor:
    """Estimated loss [layers, kv_heads, blocks + 1], nats per answer token, when a head sees the first block and its
    latest s blocks of 64 tokens, for s from 0 on; 0 where that is everything.

    MoA (2406.14909, section 4.1): masking the entry ij of an attention matrix costs A_ij / (1 - A_ij) * (g_i . A_i -
    g_ij) to first order, with g = dL/dA = dL/dO . v_j, summed over the entries that a span masks and over query heads.
    One forward and backward; each layer is computed again on the way back and forgotten once its losses are known:
    memory is every layer's input, and one layer's activations.
    """
    geometry, anchor = attach(model).geometry, torch.zeros((), device=model.device, requires_grad=True)
    found: dict[int, torch.Tensor] = {}

    def attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> torch.Tensor:
        def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gradient: torch.Tensor) -> None:
            found[layer] = _layer_losses(q, k, v, finite(gradient, f"layer {layer}'s attention"), asked)

        return _Gradient.apply(full_attention(layer, q, k, v, asked), anchor, note, q, k, v)

    with recomputed(model):
        torch.autograd.grad(answer_loss(model, recall, Through(model, attention)), anchor)
    return geometry.gathered([found[layer] for layer in range(len(geometry.layers))])


def _layer_losses(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gradient: torch.Tensor, asked: Asked
) -> torch.Tensor:
    """One layer's losses [h, blocks + 1] from q [1, H, t, d], k [1, h, t, d], v [1, h, t, e] and dL/dO [1, H, t, e]."""
    heads, tokens = k.shape[1], k.shape[2]
    blocks = -(-tokens // BLOCK)
    if asked.window is not None:
        return torch.zeros(heads, blocks + 1)
    queries, upstream = (wide(x[0]).unflatten(0, (heads, -1)) for x in (q, gradient))
    keys, values = wide(k[0]), wide(v[0])
    by_distance = torch.zeros(heads, blocks)
    for rows, s, visible in score_blocks(queries, keys, Causal(), asked.scoring):
        p = probabilities(s, visible)[0]
        pull = torch.einsum("hgte,hne->hgtn", upstream[:, :, rows], values[:, : p.shape[3]])
        mean = (pull * p).sum(-1, keepdim=True)
        cost = (p / (1 - p).clamp(min=SURE) * (mean - pull)).sum(1)  # [h, rows, m]
        at, of = torch.arange(rows.start, rows.stop)[:, None], torch.arange(p.shape[3])
        distance = ((at - of).clamp(min=0) // BLOCK).expand(cost.shape[1:])
        cost = cost.masked_fill(of.to(cost.device) < BLOCK, 0.0).cpu()
        by_distance.index_add_(1, distance.flatten(), cost.flatten(1))
    beyond = by_distance.flip(1).cumsum(1).flip(1)
    return torch.cat((beyond, torch.zeros(heads, 1)), dim=1)


def sensitivities(
    model: PreTrainedModel, recalls: Sequence[Recall], progress: Progress | None = None
) -> list[torch.Tensor]:
    """`span_losses` of each of the recalls, of different lengths, with the dense model's own answers."""
    check_recalls(recalls)
    found = []
    for done, recall in enumerate(recalls):
        found.append(span_losses(model, own_answers(model, recall)))
        if progress is not None:
            progress(done + 1, len(recalls))
    return found


@dataclass(frozen=True)
class Choices:
    """Spans that a head may have: alpha tokens + beta of the context, `spans [candidates, 2]`."""

    spans: torch.Tensor

    @classmethod
    def default(cls, tokens: int) -> Choices:
        """Alpha from one block to `tokens` in powers of two, beta 0 to 1 in eighths, and everything."""
        alphas = [BLOCK * 2**i for i in range(max(1, (tokens // BLOCK).bit_length()))]
        pairs = [(float(a), b / 8) for a in alphas for b in range(8)]
        return cls(torch.tensor([*pairs, (0.0, 1.0)]))

    def blocks(self, tokens: int) -> torch.Tensor:
        """Blocks [candidates] that each span means for so many tokens."""
        alpha, beta = self.spans.unbind(1)
        return ((alpha + beta * tokens) / BLOCK).ceil().long().clamp(max=-(-tokens // BLOCK))

    def density(self, tokens: int) -> torch.Tensor:
        """Share [candidates] of so many tokens that each keeps, the first block with it."""
        return ((self.blocks(tokens) + 1) * BLOCK / tokens).clamp(max=1.0)

    def losses(self, sensitivity: torch.Tensor, tokens: int) -> torch.Tensor:
        """What each costs every head: [layers * kv_heads, candidates], from losses [layers, kv_heads, blocks + 1]."""
        return sensitivity.flatten(0, 1)[:, self.blocks(tokens).clamp(max=sensitivity.shape[2] - 1)]


def check_ladder(lengths: Sequence[int], density: float) -> None:
    """Raise HeadwiseError unless spans of this mean density can be found for texts of these lengths."""
    if len(lengths) < 3 or list(lengths) != sorted(set(lengths)):
        raise HeadwiseError(f"spans are chosen for three or more ascending lengths, got {list(lengths)}")
    least = float(Choices.default(lengths[-1]).density(lengths[0]).min())
    if least > density:
        raise HeadwiseError(
            f"of {lengths[0]} tokens the shortest span is {least:.2f}, more than the density of {density}; give longer "
            "texts (--context), a higher density, or leave 'spans' out"
        )


def choose_spans(
    measured: Sequence[torch.Tensor], lengths: Sequence[int], density: float, choices: Choices | None = None
) -> torch.Tensor:
    """Spans [layers, kv_heads, 2], alpha tokens and beta of the context, of mean density at most `density` throughout.

    measured: losses of `span_losses` at ascending `lengths`, three or more. Spans are found for the shortest length and
    the longest but one, for several weights of the two; the plan of least loss at the longest is kept (MoA, section
    4.2). A density linear in 1 / length that holds at both ends holds between. What counts of a loss is its size: the
    dense model's own answers are near the least loss, where a first-order estimate's sign is chance.
    """
    check_ladder(lengths, density)
    choices = choices or Choices.default(lengths[-1])
    ends = (0, len(lengths) - 2)
    costs = [choices.density(lengths[i]) for i in ends]
    losses = [choices.losses(measured[i].abs(), lengths[i]) for i in ends]
    unseen = choices.losses(measured[-1].abs(), lengths[-1])
    plans = [exact_choice(w * losses[0] + (1 - w) * losses[1], costs, density) for w in (0.0, 0.5, 1.0)]
    best = min(plans, key=lambda plan: float(unseen.gather(1, plan[:, None]).sum()))
    return choices.spans[best].unflatten(0, measured[0].shape[:2])


def exact_choice(losses: torch.Tensor, costs: Sequence[torch.Tensor], mean: float, most: int = 512) -> torch.Tensor:
    """One candidate per head, int64 [heads], of least total loss [heads, candidates] with a mean of each of two costs
    [candidates] of at most `mean`: by dynamic programming over what is spent, in about `most` units rounded up.

    Raises HeadwiseError when even the cheapest candidates cost more.
    """
    heads = losses.shape[0]
    whole = max(1, int(most / (mean * heads)))  # units of a cost of 1
    spent = [(cost * whole - 1e-4).ceil().long() for cost in costs]
    most = int(mean * heads * whole + 1e-4)
    table = torch.zeros(most + 1, most + 1)
    taken = torch.empty(heads, most + 1, most + 1, dtype=torch.int16)
    for head in range(heads):
        after = torch.full_like(table, torch.inf)
        for one, (a, b) in enumerate(zip(*(x.tolist() for x in spent), strict=True)):
            if max(a, b) > most:
                continue
            reached = table[: most + 1 - a, : most + 1 - b] + losses[head, one]
            open_to = after[a:, b:]
            taken[head, a:, b:].masked_fill_(reached < open_to, one)
            torch.minimum(reached, open_to, out=open_to)
        table = after
    if not bool(table[-1, -1].isfinite()):
        raise HeadwiseError(f"even the cheapest candidates cost more than {mean} on average; give more")
    a, b, chosen = most, most, []
    for head in reversed(range(heads)):
        one = int(taken[head, a, b])
        chosen.append(one)
        a, b = a - int(spent[0][one]), b - int(spent[1][one])
    return torch.tensor(chosen[::-1])


@measure("spans", cost=167)
def measured_spans(material: Material, progress: Progress) -> Found:
    """Loss of shorter spans, and the spans of least loss (MoA)."""
    lengths = [recall.ids.shape[1] for recall in material.ladder]
    measured = sensitivities(material.model, material.ladder, progress)
    there = attach(material.model).geometry.there
    spans = torch.zeros(*there.shape, 2)
    spans[there] = choose_spans([one[there][None] for one in measured], lengths, material.density)[0]
    losses = {f"span_losses_{length}": one for length, one in zip(lengths, measured, strict=True)}
    return {"lengths": lengths, "density": material.density}, {"moa.spans": spans, **losses}
