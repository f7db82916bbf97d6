"""A query reads everything or its neighbours, as its token says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.norms import wide
from headwise.layers.patterns import Field, Lone, Pattern
from headwise.layers.projections import linear

GATE = "aha_gate"
OPEN = 1.0  # first bias of a gate: before training every query reads everything


@layer_part("pattern", "here_or_all")
@dataclass(frozen=True)
class HereOrAll(Pattern):
    """In each head a gate of the token chooses all tokens before it, or the last few. The choice is hard, and its
    gradient that of the gate. `headwise train host` adds the gates' mean to the loss with the hook `few_gates`.

    span: tokens that are read where the gate is off, the query's own among them.
    """

    span: Positive = 256
    card: ClassVar[LayerCard] = LayerCard(
        "All-or-here attention",
        "Learning When Not to Attend Globally, 2512.22562, section 3",
        "most queries read their neighbours alone, and say themselves when that is not enough",
        "o_i = g_i softmax over {j <= i} + (1 - g_i) softmax over {i - span < j <= i}, g_i = [sigmoid(w_h . x_i) > "
        "1/2]",
        systems=(210,),
        equals=(
            Limit(
                "open gates: plain attention", "heads", lambda s: s.with_gates(aha_gate=torch.ones_like(s.gates[GATE]))
            ),
            Limit("a span as long as the text: plain attention", "heads", of="here_or_all(64)"),
            Limit(
                "closed gates: a span",
                "local(3)",
                lambda s: s.with_gates(aha_gate=torch.zeros_like(s.gates[GATE])),
                of="here_or_all(3)",
            ),
        ),
        deviations="no code was found; gates have a bias, 1 before training. All keys are held, as any later query may "
        "ask for them: what is saved is what is read (`SparseAttend.pairs`)",
    )

    def gates(self, dims: Dims, shape: StreamShape) -> dict[str, nn.Module]:
        return {GATE: OpenGate(dims.width, shape.heads)}

    def _near(self, field: Field) -> Tensor:
        return field.block.seen & (field.asks - field.places < self.span)

    def seen(self, field: Field) -> Tensor:
        return torch.where(field.block.gates[GATE][..., None] > 0.5, field.block.seen, self._near(field))

    def reads(self, lone: Lone) -> Sequence[int]:
        far = bool(lone.row.gates[GATE] > 0.5)
        return range(0 if far else max(0, lone.place - self.span + 1), lone.place + 1)

    def weights(self, field: Field) -> Tensor:
        near, far = field.weights(self._near(field)), field.weights(field.block.seen)
        return near + hard(field.block.gates[GATE])[..., None] * (far - near)

    def alone(self, lone: Lone) -> Tensor:
        near = lone.weigh(range(max(0, lone.place - self.span + 1), lone.place + 1), None)
        far = lone.weigh(range(lone.place + 1), None)
        gate = hard(lone.row.gates[GATE])
        return gate * far + (1 - gate) * near


def hard(gate: Tensor) -> Tensor:
    """1 where a gate is above a half, else 0, with the gate's own gradient."""
    return (gate > 0.5).to(gate.dtype) + gate - gate.detach()


class OpenGate(nn.Module):
    """sigmoid(W x + b), a number a head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.proj = linear(width, heads)
        self.open = nn.Parameter(torch.full((heads,), OPEN))

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens]."""
        return (wide(self.proj(x)) + wide(self.open)).sigmoid().transpose(1, 2)
