"""Agent attention: a few learned agents read all keys, and queries read the agents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.averaged import Averaged, averages
from headwise.layers.base import Dims, Lane, Streams, StreamShape, repeated
from headwise.layers.learned import LearnedTensors
from headwise.layers.norms import wide


def _asking_as_it(streams: Streams) -> Streams:
    agent = streams.learned["agents"][:, :1].to(streams.q.dtype)
    return replace(streams, q=agent.expand_as(streams.q))


@layer_part("mix", "agents")
@dataclass(frozen=True)
class Agents(Averaged):
    """An agent is a learned query, whose softmax over all keys so far is kept as a running average of the values.

    count: agents of a head. block: tokens that are computed at once.
    """

    count: Positive = 16
    card: ClassVar[LayerCard] = LayerCard(
        "Agent attention",
        "Agent Attention, 2312.08874, section 4.1, equation 3; learned as the inducing points of 1810.00825, section "
        "3.2",
        "queries look at a few agents, which looked at all keys",
        "o_t = softmax(q_t A^T / sqrt(d)) (softmax(A K_t^T / sqrt(d)) V_t), A learned, K_t and V_t up to token t",
        systems=(33,),
        state="constant",
        equals=(Limit("one agent, which every query is: softmax", "softmax", _asking_as_it, of="agents(1)"),),
        deviations="of row 33 a causal layer: agents are learned, where the paper pools them from the queries of a "
        "whole image, and it has no agent bias, no convolution of values and no diffusion host",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        return LearnedTensors({"agents": torch.randn(shape.heads, self.count, shape.key_dim)})

    def shown(self, streams: Streams, module: nn.Module, x: Tensor) -> Streams:
        assert isinstance(module, LearnedTensors)
        return streams.with_learned(**module(x))

    def rows(self, shape: StreamShape) -> int:
        return self.count

    def logits(self, streams: Streams) -> Tensor:
        return self._met(streams.k, streams)

    def asks(self, streams: Streams) -> Tensor:
        return self._met(streams.q, streams).softmax(-1)

    def _met(self, x: Tensor, streams: Streams) -> Tensor:
        """The scaled products of `x [batch, heads, tokens, dim]` and the agents of all heads."""
        agents = wide(streams.learned["agents"])
        return repeated(wide(x), len(agents)) @ agents.transpose(1, 2) * streams.scale

    def alone(self, lane: Lane) -> Tensor:
        agents = lane.learned["agents"]
        looks = (lane.q @ agents.T * lane.scale).softmax(-1)
        return torch.einsum("tm,tmv->tv", looks, averages(lane.k @ agents.T * lane.scale, lane.v))
