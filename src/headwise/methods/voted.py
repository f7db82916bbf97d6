"""What the last queries attend to, by chunks of the text: what ChunkKV and its gated form share."""

from __future__ import annotations

import torch

from headwise.attention.view import View


def voted(view: View, window: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last `window` queries paid to each token, by chunk of `size` tokens and place in it, [chunks, size]
    float64: means over the heads that hold the token. Their own tokens count as fully attended to. And which tokens
    are held at all. Needs keys and queries."""
    last = min(window, view.queries.shape[2])
    # Head by head: the window's attention matrix over all heads at once would be the largest tensor around.
    votes = torch.cat([view.subset((i,)).observe(last).mean(dim=(1, 2)) for i in range(len(view.heads))])
    votes = votes.double().masked_fill(view.positions >= view.seen - last, 1.0)
    places, chunks = view.positions.long().flatten(), -(-view.seen // size)
    total, holders = (
        votes.new_zeros(chunks * size).index_add(0, places, one.flatten()).unflatten(0, (chunks, size))
        for one in (votes, torch.ones_like(votes))
    )
    return total / holders.clamp(min=1), holders > 0


def plain_voted(view: View, window: int, size: int) -> dict[int, dict[int, float]]:
    """The same by chunk and position, one softmax row at a time."""
    heads, group, there, _ = view.queries.shape
    last = min(window, there)
    found: dict[int, dict[int, list[float]]] = {}
    for h in range(heads):
        rows = torch.zeros(view.count, dtype=torch.float64)
        for g in range(group):
            for i in range(there - last, there):
                logits = view.keys[h].double() @ view.queries[h, g, i].double() * view.scale
                unseen = view.positions[h] > view.query_positions[i]
                rows += logits.masked_fill(unseen, -torch.inf).softmax(0) / (group * last)
        for place, vote in zip(view.positions[h].tolist(), rows.tolist(), strict=True):
            votes = found.setdefault(place // size, {}).setdefault(place, [])
            votes.append(1.0 if place >= view.seen - last else vote)
    return {chunk: {place: sum(one) / len(one) for place, one in own.items()} for chunk, own in found.items()}
