"""Transformer-VQ: keys are the nearest of a few codes, so that sums by code stand for all keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Lane, State, Streams, StreamShape, repeated
from headwise.layers.learned import LearnedTensors
from headwise.layers.norms import wide
from headwise.layers.running import Blocked, Memory, Running, Terms, block


@layer_part("mix", "vq")
@dataclass(frozen=True)
class VectorQuantised(Running):
    """Softmax attention over quantised keys, exactly: a code's values are added up and its keys counted.

    codes: of a head. block: tokens that are computed at once.
    """

    codes: Positive = 32
    turns = False
    card: ClassVar[LayerCard] = LayerCard(
        "Transformer-VQ",
        "Transformer-VQ, 2309.16354, sections 3.1 and 3.3",
        "keys are quantised, so that as many sums as there are codes stand for all keys",
        "o_i = sum_s exp(q_i . c_s / sqrt(d)) V_is / sum_s exp(q_i . c_s / sqrt(d)) N_is, V_is and N_is the sum of "
        "values and the number of keys up to token i whose nearest code is c_s",
        systems=(221,),
        state="constant",
        deviations="of row 221 the sums over codes: no blocks of exact attention with positions beside them; codes "
        "are learned by gradient, and keys by the softmax of their distances from the codes (a straight-through "
        "estimate), where the paper has averages over a batch and a commitment loss; 32 codes, not 512",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        return LearnedTensors({"codes": torch.randn(shape.heads, self.codes, shape.key_dim)})

    def shown(self, streams: Streams, module: nn.Module, x: Tensor) -> Streams:
        assert isinstance(module, LearnedTensors)
        return streams.with_learned(**module(x))

    def terms(self, streams: Streams) -> Terms:
        codes = wide(streams.learned["codes"])
        q, k = (repeated(wide(one), len(codes)) for one in (streams.q, streams.k))
        scores = q @ codes.transpose(1, 2) * streams.scale
        return Terms(scores, chosen(k, codes), F.pad(wide(streams.v), (0, 1), value=1.0))

    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Memory)
        terms = self.of_all_heads(streams)
        one, before = terms.v[..., -1:], state.matrix[:, :, None, :, -1]
        counts, _ = block(Terms(one, one, terms.k), streams.segments, replace(state, matrix=before))
        held = terms.q.masked_fill(counts.detach() < 0.5, float("-inf"))  # of codes that a key so far was nearest to
        weights = (held - held.detach().amax(-1, keepdim=True)).exp()
        found, after = block(replace(terms, q=weights), streams.segments, state)
        return found[..., :-1] / found[..., -1:], after

    step = Blocked.step

    def memory(self, shape: StreamShape) -> tuple[int, int]:
        return self.codes, shape.value_dim + 1

    def alone(self, lane: Lane) -> Tensor:
        codes = lane.learned["codes"]
        near = -(lane.k[:, None] - codes).square().sum(-1) / 2
        soft = near.softmax(-1)
        nearest = (near == near.amax(-1, keepdim=True)) + (soft - soft.detach())
        read = []
        for i, q in enumerate(lane.q):
            known = nearest[: i + 1].sum(0).detach() > 0.5
            weights = nearest[: i + 1] @ ((q @ codes.T * lane.scale).exp() * known)
            read.append(weights @ lane.v[: i + 1] / weights.sum())
        return torch.stack(read)


def chosen(k: Tensor, codes: Tensor) -> Tensor:
    """Of keys `k [..., tokens, dim]`, 1 at the nearest of `codes [..., codes, dim]` and else 0, [..., tokens, codes].

    Gradients are those of the softmax of minus half the squared distances.
    """
    near = k @ codes.transpose(-1, -2) - codes.square().sum(-1)[..., None, :] / 2
    soft = near.softmax(-1)
    return F.one_hot(near.argmax(-1), codes.shape[-2]).to(k.dtype) + (soft - soft.detach())
