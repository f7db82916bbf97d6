"""Keys rounded by channel over groups of tokens, values by token: large key channels no longer drown the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.compress import Compress, Group, Pair
from headwise.methods.rounding import plain_blocks
from headwise.registry import Card, register


@register("compress", "kivi")
@dataclass(frozen=True)
class Kivi(Compress):
    """The last `window` tokens as they are; of the older ones keys per channel over `group` tokens, values per token.

    key, value: bits per element, 4 or 2.
    group: tokens that share a key channel's scale, and channels that share a value's: 16, 32, 64 or 128.
    window: most recent tokens left as they are; up to a group and 64 decode steps more, until they are rounded.
    """

    key: Literal[4, 2] = 2
    value: Literal[4, 2] = 2
    group: Group = 32
    window: NonNegative = 128

    card = Card(
        title="KIVI",
        paper="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, arXiv 2402.02750",
        frees_memory=True,
        chunking="approximate",
        forgets="differences below half a step of each channel's range over a group of tokens",
        deviations="keys and values share one window, which slides (the paper's code empties the keys' at once when it "
        "is full); under an eviction groups are of kept neighbours, and shrunken groups are joined and rounded anew",
    )

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, then packed."""
        return ("plain", "plain"), (f"channel{self.key}/{self.group}", f"int{self.value}/{self.group}")

    def level(self, view: View) -> torch.Tensor:
        """1 [h, n] for what the window has passed."""
        return (view.positions < view.seen - self.window).long()

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """Whole groups beyond the window are packed."""
        packed = max(0, settled - self.window) // self.group * self.group
        return settled - packed + later, packed

    def plain(self, view: View) -> Pair:
        """What keys [h, n, d] and values [h, n, e] become, group by group."""
        keys, values = view.keys.clone(), view.values.clone()
        for head, positions in enumerate(view.positions.tolist()):
            passed = [i for i, position in enumerate(positions) if position < view.seen - self.window]
            plain_blocks(keys[head], values[head], passed, self.group, (self.key, self.value))
        return keys, values
