"""Titans' neural memory: gradient descent with momentum and forgetting on what a token's key should recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Lane, State, Streams, StreamShape, heads_of, repeated
from headwise.layers.gates import Beta, Gates
from headwise.layers.norms import EPS, unit, wide
from headwise.layers.running import Blocked, Memory, memory_bytes, nothing

GATES = ("rate", "momentum", "forget")


def _plain_descent(streams: Streams) -> Streams:
    still = torch.zeros_like(streams.gates["rate"])
    return streams.with_gates(momentum=still, forget=still, beta=streams.gates["rate"])


@dataclass(frozen=True, eq=False)
class Descent(State):
    """The memory, and the last step of it, [batch, heads, key dim, value dim]."""

    memory: Memory
    step: Tensor


@layer_part("mix", "titans")
@dataclass(frozen=True)
class Titans(Blocked):
    """A matrix a head that learns, token by token, to recall a value by its key.

    block: tokens whose results are put together at once; each is a step of its own.
    """

    turns = False
    usual: ClassVar[str] = "short_conv | gated"
    card: ClassVar[LayerCard] = LayerCard(
        "Titans' memory",
        "Titans: Learning to Memorize at Test Time, 2501.00663, section 3.1, equations 8 to 14",
        "a memory learns by gradient descent with momentum what keys recall, and forgets a share of it",
        "S_t = eta_t S_(t-1) - theta_t k_t (k_t^T M_(t-1) - v_t^T), M_t = (1 - alpha_t) M_(t-1) + S_t, o_t = M_t^T q_t",
        systems=(232,),
        state="constant",
        equals=(Limit("no momentum and no forgetting: the delta rule", "delta", _plain_descent),),
        deviations="of row 232 the linear memory, a step of descent a token (the paper's chunk of 1), in a loop over "
        "tokens that is slow: no deep memory, no chunk form; of its three blocks the layer (MAL) alone, by a pattern "
        "of layers, and no persistent tokens; memories begin at 0, which the paper learns",
    )

    def build(self, dims: Dims, shape: StreamShape) -> nn.Module:
        return Gates({name: Beta(dims.width, shape.heads) for name in GATES})

    def empty(self, streams: Streams) -> Descent:
        memory = nothing(streams, streams.k.shape[-1], streams.v.shape[-1])
        return Descent(memory, memory.matrix)

    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Descent)
        told = (unit(streams.q) * streams.scale, unit(streams.k), wide(streams.v))
        q, k, v = (repeated(one, heads_of(streams))[..., None, :] for one in told)
        rate, momentum, forget = (repeated(streams.gates[name], q.shape[1])[..., None, None] for name in GATES)
        matrix, change, last, found = state.memory.matrix, state.step, state.memory.segment, []
        for t in range(q.shape[2]):
            goes_on = (streams.segments[:, t] == last)[:, None, None, None]
            matrix, change, last = matrix * goes_on, change * goes_on, streams.segments[:, t]
            wrong = k[:, :, t] @ matrix - v[:, :, t]
            change = momentum[:, :, t] * change - rate[:, :, t] * (k[:, :, t].transpose(-1, -2) @ wrong)
            matrix = (1 - forget[:, :, t]) * matrix + change
            found.append(q[:, :, t] @ matrix)
        return torch.cat(found, dim=2), Descent(Memory(matrix, last), change)

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        size = (shape.heads, shape.key_dim, shape.value_dim)
        return memory_bytes(*size) + 4 * shape.heads * shape.key_dim * shape.value_dim

    def alone(self, lane: Lane) -> Tensor:
        q, k = (x / (x.square().sum(-1, keepdim=True) + EPS).sqrt() for x in (lane.q, lane.k))
        memory = k.new_zeros(k.shape[1], lane.v.shape[1])
        change, read = memory, []
        for t in range(len(k)):
            key, value = k[t], lane.v[t]
            missed = torch.func.grad(lambda held, key=key, value=value: (key @ held - value).square().sum() / 2)
            change = lane.gates["momentum"][t] * change - lane.gates["rate"][t] * missed(memory)
            memory = (1 - lane.gates["forget"][t]) * memory + change
            read.append(q[t] @ memory * lane.scale)
        return torch.stack(read)
