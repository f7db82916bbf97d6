"""A-shape: every query reads the first tokens and a window of the latest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.attention.where import Blocks, Where, Window
from headwise.errors import HeadwiseError
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "a_shape")
@dataclass(frozen=True)
class AShape(Prefill):
    """sinks: first tokens that every query reads. window: latest tokens that a query reads, itself included."""

    sinks: int = 128
    window: int = 1024

    card = Card(
        title="A-shape prefill",
        paper="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention, 2407.02490",
        systems=(242,),
        phase="prefill",
        chunking="exact",
        forgets="nothing is dropped, but prompt tokens outside sinks and window are not read",
    )

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1:
            raise HeadwiseError(f"sinks must be 0 or more and window 1 or more, got {self.sinks} and {self.window}")

    def where(self, view: View) -> Where:
        """Window and sinks, the same for all heads."""
        return Window(self.window - 1, self.sinks)

    def plain(self, view: View) -> Where:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        t, n = view.queries.shape[2], view.positions.shape[1]
        rows = [[j < self.sinks or i - j < self.window for j in range(n)] for i in range(n - t, n)]
        return Blocks.from_map(1, torch.tensor([rows]))
