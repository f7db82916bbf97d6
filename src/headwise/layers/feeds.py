"""What follows attention in a decoder layer: its base class, its modules, and the network that most have."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from headwise.layers.base import LayerPart, State
from headwise.layers.projections import linear


class Feed(LayerPart, ABC):
    """What follows attention, as a host's config says it."""

    @abstractmethod
    def build(self, width: int, hidden: int) -> FeedModule:
        """Its trainable module, of tokens of `width` channels and networks of `hidden` channels."""

    def state_bytes(self, width: int, tokens: int, element: int) -> int:
        """Bytes of its state after `tokens` tokens of one sequence, at `element` bytes an element."""
        return 0


class FeedModule(nn.Module, ABC):
    """The module of a feed part."""

    @abstractmethod
    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """`x [batch, tokens, width]` -> what is added to it, and the state after it."""


class Gated(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = linear(width, 2 * hidden), linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., width]` -> as `x`."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)
