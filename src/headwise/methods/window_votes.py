"""What the last queries attend to, smoothed along the tokens: SnapKV's votes, and what others make of them."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool1d

from headwise.attention.view import View


def window_votes(view: View, window: int, kernel: int) -> torch.Tensor:
    """The attention of the last `window` queries, averaged over them and the query group and over `kernel` neighbours,
    [h, n]; +inf for the voters' own tokens. Needs keys and queries."""
    window = min(window, view.queries.shape[2])
    voters = view.positions >= view.seen - window
    # Head by head: the window's attention matrix over all heads at once would be the largest tensor around.
    votes = torch.cat([view.subset((i,)).observe(window).mean(dim=(1, 2)) for i in range(len(view.heads))])
    mean = votes.masked_fill(voters, 0)
    smooth = avg_pool1d(mean[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]
    return smooth.masked_fill(voters, torch.inf)


def plain_window_votes(view: View, window: int, kernel: int) -> torch.Tensor:
    """The same from the paper's equations: softmax rows, column sums, a sliding mean."""
    heads, group, last, _ = view.queries.shape
    window = min(window, last)
    rows = []
    for h in range(heads):
        positions = view.positions[h].tolist()
        votes = [0.0] * len(positions)
        for g in range(group):
            for i in range(last - window, last):
                logits = (view.keys[h].double() @ view.queries[h, g, i].double()) * view.scale
                seen = view.positions[h] <= view.query_positions[i]
                row = logits.masked_fill(~seen, -torch.inf).softmax(0).tolist()
                votes = [vote + p / (group * window) for vote, p in zip(votes, row, strict=True)]
        voter = [p >= view.seen - window for p in positions]
        votes = [0.0 if own else vote for own, vote in zip(voter, votes, strict=True)]
        reach = kernel // 2
        smooth = [sum(votes[max(0, j - reach) : j + reach + 1]) / kernel for j in range(len(votes))]
        rows.append([float("inf") if own else vote for own, vote in zip(voter, smooth, strict=True)])
    return torch.tensor(rows)
