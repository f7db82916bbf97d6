"""How far information gets in d layers, when each layer reads powers of two, a window, or a dilated window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, register
from headwise.methods.prefill.power import Power
from headwise.theory.fitting import generator
from headwise.theory.operators import drawn, view_of


@register("power_reach")
@dataclass(frozen=True, kw_only=True)
class PowerReach(Experiment):
    """Breadth-first search over the masks of layers, from texts of lengths drawn between half of `tokens` and all.

    tokens: of the longest text. layers: that are searched through.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="The reach of power-of-two attention",
        statement="With tokens at powers of two every token within 2^d is reached in d layers without gaps, a row "
        "reading no more than its window and log2 n tokens; a window of as many tokens reaches d times its length, a "
        "dilated one no odd distance beyond its own tokens",
        paper="PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention, "
        "arXiv 2503.03588, section 3, Theorem 1",
        setting="sinks, a window and powers of two, up to 32K tokens",
        seconds=20,
        systems=(301,),
        differs="texts of 2048 tokens; no sinks, which would lead everywhere in two layers; the distances that the "
        "last query reads are every query's",
        leaves_out="the kernel, which the laws of prefill hold to masked attention, and that a model trained with the "
        "mask finds a passkey beyond the reach of a window",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("tokens within 2^d that d layers do not reach, share", "missed", "missed_window",
             "a window of as many tokens", below=1e-9),
        Part("tokens within 2^d at odd distances that d layers do not reach, share", "odd", "odd_dilated",
             "every other token, as many", below=1e-9),
        Part("tokens of a row beyond its window and log2 n", "row", "row_dense", "dense attention", below=0.5),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"reach by layers": Panel("layers", "farthest token without a gap", "y")}

    tokens: Annotated[int, Ge(64), Le(4096)] = 2048
    layers: Annotated[int, Ge(2), Le(12)] = 8

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of tokens that are not reached."""
        chance = generator(self.name, seed)
        n = int(torch.randint(self.tokens // 2, self.tokens + 1, (1,), generator=chance))
        q, k, v = drawn(chance, 1, n, 1, queries=1)
        power = _distances(Power(first=0, nearest=2).where(view_of(q, k, v)).dense(1, n)[0, 0])
        count = int(power.sum())
        window = torch.arange(n) < count
        dilated = (torch.arange(n) % 2 == 0) & (torch.arange(n) < 2 * count)
        reached = {name: _reached(one, self.layers) for name, one in
                   (("power", power), ("window", window), ("dilated", dilated))}  # fmt: skip
        return {
            "measures": {
                "missed": _missed(reached["power"], self.layers),
                "missed_window": _missed(reached["window"], self.layers),
                "odd": 1 - float(reached["power"][-1][1 : 2**self.layers : 2].float().mean()),
                "odd_dilated": 1 - float(reached["dilated"][-1][1 : 2**self.layers : 2].float().mean()),
                "row": count - 2 - int(math.log2(n)),
                "row_dense": n - 2 - int(math.log2(n)),
            },
            "lines": {
                "reach by layers": {
                    name: [[depth + 1, int((~one).int().argmax()) - 1 if not bool(one.all()) else n - 1]
                           for depth, one in enumerate(layers)]
                    for name, layers in reached.items() if name != "dilated"
                }
            },
        }  # fmt: skip


def _distances(row: torch.Tensor) -> torch.Tensor:
    """A last query's row of a mask [n], as which distances back it reads."""
    return row.flip(0)


def _reached(reads: torch.Tensor, layers: int) -> list[torch.Tensor]:
    """After each layer, which distances back have reached a token whose layers all read at the distances `reads`."""
    n, found, here = len(reads), [], torch.zeros(len(reads), dtype=torch.bool)
    here[0] = True
    for _ in range(layers):
        there = here.clone()
        for step in reads.nonzero()[:, 0].tolist():
            there[step:] |= here[: n - step]
        here = there
        found.append(here)
    return found


def _missed(reached: list[torch.Tensor], layers: int) -> float:
    """The largest share, over depths, of tokens within 2^depth that are not reached."""
    return max(1 - float(one[: 2**depth + 1].float().mean()) for depth, one in enumerate(reached, 1))
