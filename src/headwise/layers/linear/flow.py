"""Flow attention: linear attention as a flow from sources to sinks, both of which share a fixed amount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Lane, State, Streams, StreamShape, heads_of, repeated
from headwise.layers.norms import wide
from headwise.layers.running import Blocked, Memory, Terms, block, memory_bytes, nothing

EPS, MOST = 1e-6, 10.0  # added to features and sums; largest conserved flow, as in the official code


@dataclass(frozen=True, eq=False)
class Flows(State):
    """Running sums, each a memory: of keys, queries and ones; of both over their flows; of competing sources; of keys
    with values."""

    sums: Memory
    conserved: Memory
    sources: Memory
    values: Memory


@layer_part("mix", "flow")
@dataclass(frozen=True)
class Flow(Blocked):
    """Keys compete for what they send, by a softmax over time; queries are given a share of what arrives.

    block: tokens that are computed at once.
    """

    turns = False
    card: ClassVar[LayerCard] = LayerCard(
        "Flow attention",
        "Flowformer, 2202.06258, section 3.2; causal as its official code has it",
        "what a key sends and a query takes is conserved, so that no softmax over pairs is needed",
        "o_i = sigmoid(I'_i) (q_i / I_i) . sum_(j <= i) k_j (n_j softmax_(s <= j)(O'_s)_j v_j), I_i = q_i . sum k, "
        "O_j = k_j . sum q, I'_i = q_i . sum_j k_j (n_j / O_j) / n_i, O'_j = k_j . sum_s q_s (n_s / I_s) / n_j",
        systems=(261,),
        state="constant",
        deviations="of row 261 the causal form: sums are over the tokens so far, as in the official code, so that it "
        "is no part of the form over whole texts; no listops or pixels",
    )

    def empty(self, streams: Streams) -> Flows:
        q, v = streams.q.shape[-1], streams.v.shape[-1]
        return Flows(*(nothing(streams, rows, columns) for rows, columns in _sizes(q, v)))

    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Flows)
        told = (wide(streams.q).sigmoid(), wide(streams.k).sigmoid(), wide(streams.v))
        q, k, v = (repeated(one, heads_of(streams)) for one in told)
        own, one = streams.segments, torch.ones_like(v[..., :1])
        width = [q.shape[-1]] * 2
        summed, sums = block(Terms(one, one, torch.cat((k, q, one), -1)), own, state.sums)
        keys, queries, count = summed.split([*width, 1], -1)
        taken, sent = count / _met(q, keys), count / _met(k, queries)
        summed, conserved = block(Terms(one, one, torch.cat((k * sent, q * taken), -1)), own, state.conserved)
        keys, queries = summed.split(width, -1)
        source = (_met(k, queries) / count).clamp(-MOST, MOST).exp()
        among, sources = block(Terms(one, one, source), own, state.sources)
        found, values = block(Terms(q * taken / count, k, v * source / among * count), own, state.values)
        return found * (_met(q, keys) / count).sigmoid(), Flows(sums, conserved, sources, values)

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        return sum(memory_bytes(shape.heads, *size) for size in _sizes(shape.key_dim, shape.value_dim))

    def alone(self, lane: Lane) -> Tensor:
        q, k = (1 / (1 + (-x).exp()) for x in (lane.q, lane.k))
        count = len(q)
        taken = torch.stack([(i + 1) / ((q[i] + EPS) @ (k[: i + 1].sum(0) + EPS)) for i in range(count)])
        sent = torch.stack([(j + 1) / ((k[j] + EPS) @ (q[: j + 1].sum(0) + EPS)) for j in range(count)])
        read, given = [], []
        for i in range(count):
            sinks = (sent[: i + 1, None] * k[: i + 1]).sum(0) + EPS
            sources = (taken[: i + 1, None] * q[: i + 1]).sum(0) + EPS
            given.append((((k[i] + EPS) @ sources) / (i + 1)).clamp(-MOST, MOST))
            share = torch.stack(given).softmax(0)[-1] * (i + 1)
            read.append((share * lane.v[i], ((q[i] + EPS) @ sinks / (i + 1)).sigmoid()))
        values = torch.stack([one for one, _ in read])
        weights = [taken[i] / (i + 1) * (k[: i + 1] @ q[i]) for i in range(count)]
        return torch.stack([read[i][1] * (weights[i] @ values[: i + 1]) for i in range(count)])


def _met(one: Tensor, sums: Tensor) -> Tensor:
    """The flow through each token, [batch, heads, tokens, 1]."""
    return ((one + EPS) * (sums + EPS)).sum(-1, keepdim=True)


def _sizes(key_dim: int, value_dim: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the memories, in the order of `Flows`."""
    return ((1, 2 * key_dim + 1), (1, 2 * key_dim), (1, 1), (key_dim, value_dim))
