"""Which tokens the prompt attends to, asked of a few queries: what both sides of ZipVL share."""

from __future__ import annotations

from dataclasses import replace

import torch

from headwise.attention.view import View


def probed(view: View, last: int, drawn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [h, n] that the last queries and random earlier ones paid to each token, summed over them, and how
    many of them [h, n] could see it (ZipVL, 2410.08584, section 4.2). Needs keys and queries."""
    probes = _probes(view, last, drawn)
    asking = {"queries": view.queries[:, :, probes], "query_positions": view.query_positions[probes]}
    asked = replace(view, granted={**view.granted, **asking})
    # head by head, so that the weights of long prompts stay small
    masses = [asked.subset((head,)).observe(len(probes)).sum((0, 1, 2)) for head in range(len(view.heads))]
    visible = (view.positions[:, None] <= asking["query_positions"][:, None]).sum(1)
    return torch.stack(masses), visible


def _probes(view: View, last: int, drawn: int) -> torch.Tensor:
    """Which of the t queries probe, ascending: the last ones, and as many as `drawn` before them."""
    t = view.queries.shape[2]
    earlier = max(0, t - last)
    order = torch.randperm(earlier, generator=torch.Generator().manual_seed(view.seed))[:drawn]
    probes = torch.zeros(t, dtype=torch.bool).index_fill(0, torch.cat((order, torch.arange(earlier, t))), True)
    return probes.nonzero()[:, 0].to(view.positions.device)


def plain_probed(view: View, last: int, drawn: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same one softmax row at a time, in float64."""
    mass, visible = torch.zeros(2, *view.positions.shape, dtype=torch.float64)
    for i in _probes(view, last, drawn).tolist():
        for h, positions in enumerate(view.positions):
            seen = (positions <= view.query_positions[i]).nonzero()[:, 0]
            visible[h, seen] += 1
            for query in view.queries[h, :, i].double():
                mass[h, seen] += (view.keys[h, seen].double() @ query * view.scale).softmax(0)
    return mass, visible
