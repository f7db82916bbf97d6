"""Channels between layers, read from weights: which directions a head writes that a later one reads (arXiv 2406.09519).

All is asked of the model itself: hidden states of one channel each are handed to every layer, at the first place, where
rotary embeddings turn nothing, and what its heads make of them is the layer's matrix, its norm's weights among them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from headwise.calibrate.layerwise import decoder_layers
from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.subject import model_of
from headwise.errors import UnsupportedModel
from headwise.observe import LayerAttention, Subject
from headwise.seams.transformers.beside import Head, check_heads

MOST = 4096  # channels of hidden states, as all of them are read at once


@dataclass(frozen=True, eq=False)
class Writer:
    """What a head writes as a sum of channels: of a hidden state x it adds sum_i (x . reads_i) strength_i writes_i.
    reads, writes: [c, width], of unit length; strength [c], falling."""

    reads: torch.Tensor
    strength: torch.Tensor
    writes: torch.Tensor


class Circuits:
    """The matrices of a model's heads over its hidden states."""

    @torch.no_grad()
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.outputs = output_modules(subject)
        self.seen: dict[int, LayerAttention] = {}
        layers = decoder_layers(model_of(subject))
        if not layers:
            raise UnsupportedModel("the decoder layers do not lie in one list: no hidden state can be handed in")
        weight = model_of(subject).get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        width = weight.shape[1]
        if width > MOST:
            raise UnsupportedModel(f"hidden states have {width} channels; channels are read of {MOST} at most")
        states = torch.cat((torch.eye(width), torch.zeros(1, width)))[:, None].to(model_of(subject).dtype)

        def enter(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (states.to(inputs[0].device), *inputs[1:])

        def attention(one: LayerAttention) -> torch.Tensor:
            self.seen[one.layer] = one
            return one.q.new_zeros(*one.q.shape[:3], one.v.shape[3])

        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_pre_hook(enter).remove)
            ids = torch.zeros(width + 1, 1, dtype=torch.int64, device=subject.device)
            subject.hidden(ids, torch.tensor([0]), attention)

    @cached_property
    def heads(self) -> list[Head]:
        """All heads, layer by layer."""
        return [(layer, head) for layer, one in sorted(self.seen.items()) for head in range(one.q.shape[1])]

    def writer(self, head: Head) -> Writer:
        """The channels of what a head writes, by the singular values of its value and output matrices."""
        check_heads(self.subject.geometry, [head])
        one, (layer, own) = self.seen[head[0]], head
        values = self._matrix(one.v, own // self._group(layer))
        read = values.new_zeros(values.shape[1], one.q.shape[1], values.shape[1])
        read[:, own] = torch.eye(values.shape[1])
        project = self.outputs[layer]
        fed = read.flatten(1).to(one.v)
        with torch.no_grad():
            out = (project(fed) - project(torch.zeros_like(fed))).float()
        one_q, one_r = torch.linalg.qr(values)
        other_q, other_r = torch.linalg.qr(out.T)
        u, s, vt = torch.linalg.svd(one_r @ other_r.T)
        return Writer((one_q @ u).T, s, vt @ other_q.T)

    def composition(self, head: Head, writes: torch.Tensor) -> torch.Tensor:
        """How far a later head's scores read directions `writes [c, width]` by its keys: the norm of its query-key
        matrix times each direction, over that of the matrix, [c]; 0 to 1."""
        one, (layer, own) = self.seen[head[0]], head
        q, k = self._matrix(one.q, own), self._matrix(one.k, own // self._group(layer))
        gram, read = q.T @ q, writes @ k
        whole = ((gram @ k.T) * k.T).sum().sqrt()
        return ((read @ gram) * read).sum(-1).clamp(min=0).sqrt() / whole

    def _group(self, layer: int) -> int:
        return self.subject.geometry.layers[layer].group

    @staticmethod
    def _matrix(x: torch.Tensor, head: int) -> torch.Tensor:
        """[width, d] of `x [width + 1, heads, 1, d]`, of which the last row is what nothing gives."""
        return (x[:-1, head, 0] - x[-1:, head, 0]).float()


def strongest(circuits: Circuits) -> dict[tuple[Head, Head], tuple[float, int]]:
    """By writer and later reader, the highest composition score of the writer's channels, and which one has it."""
    found = {}
    for head in circuits.heads:
        writes = circuits.writer(head).writes
        for other in circuits.heads:
            if other[0] > head[0]:
                scores = circuits.composition(other, writes)
                found[head, other] = (float(scores.max()), int(scores.argmax()))
    return found
