"""ZipVL's cache: tokens that hold most of the attention at 4 bits, the others at 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask, enough
from headwise.knobs import NonNegative, Positive, PositiveShare
from headwise.methods.compress import Compress, Group, Pair
from headwise.methods.probing import plain_probed, probed
from headwise.methods.rounding import plain_blocks
from headwise.registry import Card, register


@register("compress", "zipvl_bits")
@dataclass(frozen=True)
class ZipVLBits(Compress):
    """Keys per channel over groups of tokens, values per token. A token is judged once, when it is rounded.

    mass: share of the probed attention that the tokens at 4 bits must hold (the paper's tau).
    last, drawn: probing queries, the last ones and random ones of the prompt.
    memory: last queries kept between decode steps, by which new tokens are judged.
    group: tokens that share a key channel's scale, and channels that share a value's: 16, 32, 64 or 128.
    """

    mass: PositiveShare = 0.975
    last: Positive = 64
    drawn: NonNegative = 64
    memory: NonNegative = 16
    group: Group = 32

    needs = frozenset({"keys", "queries", "levels"})
    card = Card(
        title="ZipVL: bits by importance",
        paper="ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache "
        "Compression, arXiv 2410.08584, section 4.3",
        systems=(107,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="details of tokens that the probing queries did not attend to",
        deviations="importance is measured by KV head, not by layer; tokens wait as they came until a group is whole; "
        "keys are rounded by channel as KIVI does",
    )

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, 4 and 2 bits."""
        packed = tuple((f"channel{bits}/{self.group}", f"int{bits}/{self.group}") for bits in (4, 2))
        return (("plain", "plain"), *packed)

    @property
    def last_queries(self) -> int:
        """The last `memory` queries."""
        return self.memory

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """All at 4 bits: how many are important is known only once they are read."""
        whole = settled // self.group * self.group
        return settled - whole + later, whole, 0

    def level(self, view: View) -> torch.Tensor:
        """1 [h, n] for the important tokens and 2 for the others; those that are rounded already stay."""
        judged = 2 - self._important(*probed(view, self.last, self.drawn)).long()
        return torch.where(view.levels > 0, view.levels, judged)

    def _important(self, mass: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """As many tokens as hold the share of `mass [h, n]`, the best by mass per query that could see them."""
        none = torch.zeros_like(mass, dtype=torch.bool)
        return choose_mask(mass / visible.clamp(min=1), enough(mass, self.mass), none)

    def plain(self, view: View) -> Pair:
        """The same one softmax row at a time, and group by group."""
        keys, values = view.keys.clone(), view.values.clone()
        mass, visible = plain_probed(view, self.last, self.drawn)
        for head, there in enumerate(view.positions < view.seen):
            important = self._important(mass[head : head + 1, there], visible[head : head + 1, there])[0]
            held = there.nonzero()[:, 0]
            left = plain_blocks(keys[head], values[head], held[~important].tolist(), self.group, (2, 2))
            finer = [i for i in held.tolist() if i in {*left, *held[important].tolist()}]
            plain_blocks(keys[head], values[head], finer, self.group, (4, 4))
        return keys, values
