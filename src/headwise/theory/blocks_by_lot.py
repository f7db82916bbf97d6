"""Blocks that are left out by lot are better left out far away than anywhere, where attention falls with distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, register
from headwise.forms import Blocks, Causal
from headwise.methods.prefill.prflash import PrFlash
from headwise.theory.fitting import generator
from headwise.theory.operators import attended, drawn, error, view_of

WIDTH, BLOCK = 32, 16  # channels; tokens of a block


@register("blocks_by_lot")
@dataclass(frozen=True, kw_only=True)
class BlocksByLot(Experiment):
    """Attention whose scores fall with distance, by queries and keys that turn with their position as rotary embeddings
    turn them.

    tokens: of the text. lots: over which outputs are averaged. share: of the blocks, expected to be read. nats: by
    which a token's own place scores above places far away.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="PrFlashAttention's lot by distance",
        statement="With all blocks read it is dense attention; with half of them, the mean over lots that fall with "
        "distance is nearer to dense attention than with blocks left out uniformly",
        paper="The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI, "
        "arXiv 2410.18441, its section on PrFlashAttention",
        setting="not given",
        seconds=20,
        systems=(45,),
        differs="the distribution over distances is ours, as the paper gives none",
        leaves_out="the staircase of bits and RoPE with ALiBi",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("all blocks read, largest difference to dense attention", "all", "half", "half of the blocks", below=1e-5),
        Part("squared error of the mean over lots, over that of uniform lots", "falling", "placeless",
             "queries and keys that do not turn, so that distance tells nothing", below=1.0),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"error of the mean": Panel("lots", "mean squared error", "xy")}

    tokens: Annotated[int, Ge(128), Le(4096)] = 512
    lots: Annotated[int, Ge(4), Le(256)] = 32
    share: Annotated[float, Ge(0.1), Le(0.9)] = 0.5
    nats: Annotated[float, Ge(0.0), Le(20.0)] = 6.0

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors over lots, with and without distance."""
        chance = generator(self.name, seed)
        found = {turned: self._errors(chance, seed, turned) for turned in (True, False)}
        q, k, v = drawn(chance, 1, self.tokens, WIDTH)
        true, view = attended(q, k, v, Causal()).out, view_of(q, k, v, seed)
        whole, half = (attended(q, k, v, PrFlash(share=share, local=0, size=BLOCK).where(view)).out
                       for share in (1.0, self.share))  # fmt: skip
        counts = (self.lots // 4, self.lots)
        return {
            "measures": {
                "all": error(whole, true),
                "half": error(half, true),
                "falling": found[True][0][-1] / found[True][1][-1],
                "placeless": found[False][0][-1] / found[False][1][-1],
            },
            "lines": {
                "error of the mean": {
                    name: [list(one) for one in zip(counts, errors, strict=True)]
                    for name, errors in zip(("by distance", "uniform"), found[True], strict=True)
                }
            },
        }

    def _errors(self, chance: torch.Generator, seed: int, turned: bool) -> tuple[list[float], list[float]]:
        """Mean squared errors of means over a quarter of the lots and all: by distance, and with as many blocks of each
        row drawn uniformly."""
        q, k, v = drawn(chance, 1, self.tokens, WIDTH)
        if turned:
            turns = _turns(self.tokens)
            q, k = (0.5 * one + (self.nats * WIDTH**0.5) ** 0.5 * turns for one in (q, k))
        true, by_distance, uniform = attended(q, k, v, Causal()).out, [], []
        for lot in range(self.lots):
            where = PrFlash(share=self.share, local=0, size=BLOCK).where(view_of(q, k, v, 1000 * seed + lot))
            by_distance.append(attended(q, k, v, where).out)
            uniform.append(attended(q, k, v, self._uniform(chance, where.dense(self.tokens, self.tokens)[0])).out)
        return self._of_means(by_distance, true), self._of_means(uniform, true)

    def _of_means(self, outs: list[torch.Tensor], true: torch.Tensor) -> list[float]:
        """Mean squared errors of the means over a quarter of the lots and all."""
        counts = (self.lots // 4, self.lots)
        return [float((torch.stack(outs[:count]).mean(0) - true).square().mean()) for count in counts]

    def _uniform(self, chance: torch.Generator, seen: torch.Tensor) -> Blocks:
        """A map with as many far blocks in each row as `seen [n, n]` has; first and own blocks are read there, too."""
        count = self.tokens // BLOCK
        drawn_there = seen.view(count, BLOCK, count, BLOCK)[:, -1, :, 0]
        read = torch.zeros(count, count, dtype=torch.bool)
        for row, own in enumerate(drawn_there):
            read[row, [0, row]] = True
            far = torch.randperm(max(0, row - 1), generator=chance) + 1
            read[row, far[: int(own[1:row].sum())]] = True
        return Blocks.from_map(BLOCK, read[None])


def _turns(tokens: int) -> torch.Tensor:
    """Unit vectors [n, WIDTH] of positions, whose products fall with distance, by angles of a rotary embedding."""
    angles = torch.arange(tokens)[:, None] / 1000.0 ** (torch.arange(WIDTH // 2) / (WIDTH // 2))
    return torch.cat((angles.cos(), angles.sin()), -1) / (WIDTH // 2) ** 0.5
