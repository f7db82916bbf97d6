"""ZipVL: the prompt attends to as few tokens of the layer as hold a share of the attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from headwise.attention.view import View
from headwise.attention.where import VerticalSlash, Where
from headwise.choose import choose, enough
from headwise.errors import HeadwiseError
from headwise.methods.prefill import Prefill
from headwise.registry import Card, register


@register("prefill", "zipvl")
@dataclass(frozen=True)
class ZipVL(Prefill):
    """mass: share of the probed attention that the tokens read must hold (the paper's tau).

    last, drawn: probing queries, the last ones and random ones. nearest: latest tokens that a query reads, itself
    included. least: tokens read in any case.
    """

    mass: float = 0.975
    last: int = 64
    drawn: int = 64
    nearest: int = 32
    least: int = 256

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="ZipVL: token-adaptive prefill",
        paper="ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache "
        "Compression, arXiv 2410.08584, section 4.2",
        systems=(107,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but tokens that the probing queries did not attend to are read by nobody far away",
        deviations="every query is computed, and reads its nearest tokens beside the important ones; the tokens are "
        "shared by the KV heads that hold equally many; mixed-precision storing is a part of its own",
    )

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1 or min(self.last, self.nearest, self.least) < 1 or self.drawn < 0:
            raise HeadwiseError(
                f"mass must be above 0 and at most 1, last, nearest and least 1 or more, drawn 0 or more; got "
                f"{self.mass}, {self.last}, {self.nearest}, {self.least} and {self.drawn}"
            )

    def _probes(self, view: View) -> torch.Tensor:
        """Which of the t queries probe, ascending."""
        t = view.queries.shape[2]
        earlier = max(0, t - self.last)
        order = torch.randperm(earlier, generator=torch.Generator().manual_seed(view.seed))[: self.drawn]
        probes = torch.zeros(t, dtype=torch.bool).index_fill(0, torch.cat((order, torch.arange(earlier, t))), True)
        return probes.nonzero()[:, 0].to(view.positions.device)

    def where(self, view: View) -> Where:
        """Columns of the important tokens, and the nearest diagonals."""
        probes = self._probes(view)
        asking = {"queries": view.queries[:, :, probes], "query_positions": view.query_positions[probes]}
        asked = replace(view, granted={**view.granted, **asking})
        masses = [asked.subset((head,)).observe(len(probes)).sum((0, 1, 2)) for head in range(len(view.heads))]
        visible = (view.positions[:, None] <= asking["query_positions"][:, None]).sum((0, 1))
        return self._choose(view, torch.stack(masses).sum(0), visible)

    def _choose(self, view: View, mass: torch.Tensor, visible: torch.Tensor) -> Where:
        """As many columns as hold the share of `mass [n]`, the best by mass per query that could see them."""
        count = enough(mass[None], self.mass).clamp(min=self.least)
        chosen = choose((mass / visible.clamp(min=1))[None], count, torch.zeros_like(mass, dtype=torch.bool)[None])
        heads, near = len(view.heads), torch.arange(min(self.nearest, view.count), device=mass.device)
        return VerticalSlash(chosen * heads, (near,) * heads)

    def plain(self, view: View) -> Where:
        """The same one softmax row at a time."""
        heads, group, t, _ = view.queries.shape
        mass, visible = torch.zeros(2, view.count, dtype=torch.float64)
        for i in self._probes(view).tolist():
            end = view.count - t + i + 1
            for h in range(heads):
                visible[:end] += 1
                for g in range(group):
                    mass[:end] += (view.keys[h, :end].double() @ view.queries[h, g, i].double() * view.scale).softmax(0)
        return self._choose(view, mass, visible)
