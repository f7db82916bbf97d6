"""What the last tokens of a prompt look at, told by span, for every layer and head, in one forward.

No n x n matrix is made: what a query gives to a span is attention over values that say which span a key is of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch.nn.functional import one_hot, pad

from headwise.attention import attend
from headwise.context.layout import Layout
from headwise.errors import UnsupportedModel
from headwise.forms import Causal, Where, near
from headwise.observe import LayerAttention
from headwise.seams.transformers.cache import PreTrainedModel, Through
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked

Attention = Callable[[LayerAttention], torch.Tensor]
Span = tuple[int, int]  # its first token, and the one after its last


def spans_of(pieces: Sequence[torch.Tensor]) -> list[Span]:
    """The span of each piece of a prompt, from their ids [1, n] one after the other."""
    return list(pairwise(accumulate((piece.shape[1] for piece in pieces), initial=0)))


def span_shares(
    model: PreTrainedModel, ids: torch.Tensor, spans: Sequence[Span], last: int = 1, layout: Layout | None = None
) -> torch.Tensor:
    """The share of its attention that each of the last `last` tokens of `ids [1, n]` gives to each span: float32
    [layers, query heads, last, spans]. What they give to tokens of no span is in none.

    layout: how the prompt is read; None: as the model reads it.
    """
    labels = torch.zeros(ids.shape[1], dtype=torch.int64)
    for number, (first, end) in enumerate(spans, 1):
        labels[first:end] = number
    marks = one_hot(labels, len(spans) + 1)[:, 1:].float()
    found: dict[int, torch.Tensor] = {}

    def attention(one: LayerAttention) -> torch.Tensor:
        found[one.layer] = _shares(one, marks, last).cpu()
        return one.full() if layout is None else laid_out(one, layout)

    read(model, ids, attention, None if layout is None else layout.positions)
    by_layer = [shares for _, shares in sorted(found.items())]
    if len({len(shares) for shares in by_layer}) > 1:
        raise UnsupportedModel(
            f"layers have different numbers of query heads ({[len(shares) for shares in by_layer]}): what they look at "
            "is no one table; use an arranger that looks at no attention"
        )
    return torch.stack(by_layer)


def read(
    model: PreTrainedModel, ids: torch.Tensor, attention: Attention, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """The logits [1, vocabulary] after `ids [1, n]` where layers attend by `attention`, at positions [n]."""

    def through(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> torch.Tensor:
        return attention(LayerAttention(layer, q, k, v, asked.scoring, asked.window, asked.chunked))

    how = {} if positions is None else {"position_ids": positions[None].to(model.device)}
    with torch.no_grad():
        out = forward(model, Through(model, through), ids.to(model.device), logits_to_keep=1, **how)
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def laid_out(one: LayerAttention, layout: Layout) -> torch.Tensor:
    """A layer's attention [1, H, t, e] over a prompt that is read by a layout."""
    refuse_window(one, int(layout.positions.max()) + 1)
    return over(one, one.q, layout.where)


def over(one: LayerAttention, q: torch.Tensor, where: Where) -> torch.Tensor:
    """Attention [1, H, t, e] of queries [1, H, t, d] over a layer's keys, as `where` shows."""
    grouped = q[0].unflatten(0, (one.k.shape[1], -1))
    return attend(grouped, one.k[0], one.v[0], where, one.scoring).out.flatten(0, 1)[None]


def refuse_window(one: LayerAttention, reach: int) -> None:
    """Refuse a layer whose window is shorter than the positions of a prompt whose pieces share them."""
    if one.window is not None and reach > one.window:
        raise UnsupportedModel(
            f"layer {one.layer} has a window of {one.window} tokens and the prompt reaches to position {reach}: what "
            "is near in pieces that share positions is not told; give shorter documents, or a model without windows"
        )


def _shares(one: LayerAttention, marks: torch.Tensor, last: int) -> torch.Tensor:
    """Of the last queries of a layer, [query heads, last, spans]."""
    count, width = one.q.shape[2], one.k.shape[3]
    where = Causal() if one.window is None else near(one.window, one.chunked, count, last, count)
    q = one.q[0, :, -last:].float().unflatten(0, (one.k.shape[1], -1))
    k, marks = one.k[0].float(), marks.to(one.k.device)
    parts = []
    for part in marks.split(width, dim=1):  # as many at once as a key has channels, as fused kernels ask
        values = pad(part, (0, width - part.shape[1])).expand(k.shape[0], -1, -1).contiguous()
        parts.append(attend(q, k, values, where, one.scoring).out[..., : part.shape[1]])
    return torch.cat(parts, dim=-1).flatten(0, 1)
