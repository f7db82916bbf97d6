"""Spans of a text: stretches of tokens that attend to themselves, found as triangles under the diagonal (Ltri-LLM,
2412.04757)."""

from __future__ import annotations

from itertools import pairwise

import torch


def spans(band: torch.Tensor, density: float) -> torch.Tensor:
    """First tokens of the spans of one head, ascending, 0 in front, by its attention by distance `band [t, longest]`:
    the stretch whose triangle holds most attention above `density` a pair, then the best that does not overlap, and so
    on."""
    t, longest = band.shape
    ends = torch.arange(t, device=band.device)[:, None] + torch.arange(longest, device=band.device)
    rows = (band - density).cumsum(1)  # of query a, the attention back to distance o
    gains = rows[ends.clamp(max=t - 1), torch.arange(longest, device=band.device).expand_as(ends)].cumsum(1)
    gains.masked_fill_(ends >= t, -torch.inf)  # of the span from i to i + l: rows i .. i + l, back to i
    best, cuts = gains.amax(1), torch.arange(t + 1, device=band.device) == 0
    while float(best.max()) > 0:
        first = int(best.argmax())
        last = first + int(gains[first].argmax())
        cuts[first], cuts[last + 1] = True, True
        near = slice(max(0, first - longest + 1), last + 1)
        gains[near] = gains[near].masked_fill(ends[near] >= first, -torch.inf)
        best[near] = gains[near].amax(1)
    edges = [*cuts[:-1].nonzero()[:, 0].tolist(), t]
    return torch.cat([torch.arange(a, b, longest) for a, b in pairwise(edges)]).to(band.device)
