"""A-shape: every query reads the first tokens and a window of the latest."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.methods.prefill import Windowed
from headwise.registry import Card, register


@register("prefill", "a_shape")
@dataclass(frozen=True)
class AShape(Windowed):
    """sinks: first tokens that every query reads. window: latest tokens that a query reads, itself included."""

    card = Card(
        title="A-shape prefill",
        paper="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention, 2407.02490",
        systems=(242,),
        phase="prefill",
        chunking="exact",
        forgets="nothing is dropped, but prompt tokens outside sinks and window are not read",
    )
