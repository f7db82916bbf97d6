"""Bits fall in steps with a token's age: as it came, then 4, then 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.compress import Compress, Group, Pair
from headwise.methods.rounding import plain_blocks
from headwise.registry import Card, register


@register("compress", "staircase")
@dataclass(frozen=True)
class Staircase(Compress):
    """The latest `window` tokens as they are, the `four` before them at 4 bits, all older ones at 2 bits.

    Keys per channel over groups of tokens, values per token, as KIVI does.

    window, four: lengths of the upper two steps, in tokens by position; up to a group and 64 decode steps more.
    group: tokens that share a key channel's scale, and channels that share a value's: 16, 32, 64 or 128.
    """

    window: NonNegative = 128
    four: NonNegative = 512
    group: Group = 32

    card = Card(
        title="Staircase adaptive quantisation (SAQ)",
        paper="The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI, "
        "arXiv 2410.18441, its section on SAQ",
        systems=(45,),
        frees_memory=True,
        chunking="approximate",
        forgets="details of older tokens first",
        deviations="the lengths of the steps are knobs, as the paper's schedule could not be verified; a token that "
        "comes down from 4 bits is rounded from what those kept of it",
    )

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, 4 and 2 bits."""
        packed = tuple((f"channel{bits}/{self.group}", f"int{bits}/{self.group}") for bits in (4, 2))
        return (("plain", "plain"), *packed)

    def level(self, view: View) -> torch.Tensor:
        """The step [h, n] of each token's age."""
        age = view.seen - 1 - view.positions
        return (age >= self.window).long() + (age >= self.window + self.four).long()

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """Whole groups, as if the kept tokens were the latest ones, which takes the most."""
        two = max(0, settled - self.window - self.four) // self.group * self.group
        four = max(0, settled - self.window - two) // self.group * self.group
        return settled - two - four + later, four, two

    def plain(self, view: View) -> Pair:
        """What keys [h, n, d] and values [h, n, e] become, group by group."""
        keys, values = view.keys.clone(), view.values.clone()
        for head, positions in enumerate(view.positions.tolist()):
            age = [view.seen - 1 - position for position in positions]
            oldest = [i for i, one in enumerate(age) if one >= self.window + self.four]
            left = plain_blocks(keys[head], values[head], oldest, self.group, (2, 2))
            passed = left + [i for i, one in enumerate(age) if self.window <= one < self.window + self.four]
            plain_blocks(keys[head], values[head], passed, self.group, (4, 4))
        return keys, values
