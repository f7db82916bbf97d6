"""Keys and values as 4-bit integers in a frame fitted to the prompt: what int4 loses to a few large channels stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.compress import Compress, Group, Pair
from headwise.methods.rounding import plain_balanced
from headwise.registry import Card, register


@register("compress", "balanced")
@dataclass(frozen=True)
class Balanced(Compress):
    """Keys less their mean, each channel as long as queries need it, mixed by Hadamard's matrix, then rounded by token.

    The first `sinks` tokens, on whose scores all others hang, and the last `window` stay as they are.

    key, value: bits per element, 4 or 2.
    group: channels that share a scale and a minimum (4 bytes): 16, 32, 64 or 128.
    sinks: first tokens left as they are. window: most recent ones, and up to 64 decode steps more.
    """

    key: Literal[4, 2] = 4
    value: Literal[4, 2] = 4
    group: Group = 64
    sinks: NonNegative = 4
    window: NonNegative = 12

    card = Card(
        title="Balanced 4-bit cache",
        paper="none: the mean of keys taken out as in SageAttention, arXiv 2410.02367; channels of keys scaled against "
        "the queries as in QServe, arXiv 2405.04532; Hadamard rotation as in QuaRot, arXiv 2404.00456; sinks in full "
        "as in KVQuant, arXiv 2401.18079",
        frees_memory=True,
        chunking="approximate",
        forgets="differences below about 1/30 of the range of a token's balanced channels",
        deviations="mean and scales are of each KV head's own first tokens and the queries beside them (of the first "
        "chunk of a prompt in chunks), not of calibration texts; keys are rounded as the rotary embedding turned them",
    )

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain where some stay as they are, then balanced."""
        rounded = f"balanced/int{self.key}/{self.group}", f"balanced/int{self.value}/{self.group}"
        return (("plain", "plain"), rounded) if self.sinks + self.window else (rounded,)

    def level(self, view: View) -> torch.Tensor:
        """1 [h, n] for what is neither a sink nor in the window."""
        return ((view.positions >= self.sinks) & (view.positions < view.seen - self.window)).long()

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """All but sinks and window are rounded."""
        whole = min(settled, self.sinks + self.window)
        return (whole + later, settled - whole) if self.sinks + self.window else (settled + later,)

    def plain(self, view: View) -> Pair:
        """What keys [h, n, d] and values [h, n, e] become, a frame for each head."""
        keys, values = view.keys.clone(), view.values.clone()
        for head, positions in enumerate(view.positions):
            due = (positions >= self.sinks) & (positions < view.seen - self.window)
            if bool(due.any()):
                met = view.queries[head].double().square().mean((0, 1))
                keys[head, due] = plain_balanced(keys[head, due], met, self.key, self.group)
                values[head, due] = plain_balanced(
                    values[head, due], torch.ones_like(values[head, 0]), self.value, self.group
                )
        return keys, values
