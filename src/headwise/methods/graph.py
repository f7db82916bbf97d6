"""A graph over keys whose edges join those that the same queries found: laid while prompts come, searched by steps."""

from __future__ import annotations

import torch

from headwise.choose import choose

QUERIES = 256  # whose products with all keys are held at once


def nearest(
    queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the `count` best keys [n, d] that each query [g, q, d] sees, and of the very best for each of these:
    both [g * q, count]. positions [n]: of the keys. visible [q, n]."""
    rows, keys = queries.flatten(0, 1), keys.float()
    hidden = ~visible.repeat(queries.shape[0], 1)
    found, pivot = (positions.new_zeros(len(rows), count) for _ in range(2))
    for first in range(0, len(rows), QUERIES):
        own = slice(first, first + QUERIES)
        scores = (rows[own].float() @ keys.T).masked_fill_(hidden[own], -torch.inf)
        found[own] = positions[torch.stack(choose(scores, count, torch.zeros_like(hidden[own])))]
        pivot[own] = positions[scores.argmax(1, keepdim=True)].expand(-1, count)
    return found, pivot


def joined(
    pairs: torch.Tensor, edges: torch.Tensor | None, often: torch.Tensor | None, tokens: int, degree: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbours of every key, [tokens, degree], and how often each was found with it; a key with fewer has itself, 0.

    pairs [m, 2]: positions of keys that a query found together. edges, often: the same of the prompt so far, whose keys
    they are counted with. Of more than `degree` neighbours those stay that were found most often, the earliest first.
    """
    degree = min(degree, tokens)
    codes = torch.cat((pairs, pairs.flip(1)))
    counts = torch.ones(len(codes), dtype=torch.int64, device=pairs.device)
    if edges is not None and often is not None:
        from_ = torch.arange(len(edges), device=pairs.device)[:, None].expand_as(edges)
        before = torch.stack((from_.flatten(), edges.flatten()), 1)
        codes, counts = torch.cat((codes, before)), torch.cat((counts, often.flatten()))
    codes, own = (codes[:, 0] * tokens + codes[:, 1]).unique(return_inverse=True)
    totals = counts.new_zeros(len(codes)).index_add_(0, own, counts)
    order = totals.argsort(descending=True, stable=True)
    order = order[(codes[order] // tokens).argsort(stable=True)]  # by key, then by how often
    key = codes[order] // tokens
    place = torch.arange(len(key), device=key.device) - torch.searchsorted(key, key)
    stays = (place < degree) & (totals[order] > 0)
    found = torch.arange(tokens, device=key.device)[:, None].repeat(1, degree)
    found[key[stays], place[stays]] = codes[order][stays] % tokens
    weight = torch.zeros_like(found)
    weight[key[stays], place[stays]] = totals[order][stays]
    return found, weight.clamp(max=tokens)


def entries(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Where the key at each position lies, [h, tokens], of stored `positions [h, n]`; n for one that has left."""
    heads, stored = positions.shape
    at = torch.full((heads, tokens), stored, device=positions.device)
    return at.scatter(1, positions.long(), torch.arange(stored, device=at.device).expand_as(positions))


def search(
    queries: torch.Tensor,
    keys: torch.Tensor,
    entry_of: torch.Tensor,
    edges: torch.Tensor,
    first: torch.Tensor,
    steps: tuple[int, int],
) -> torch.Tensor:
    """Largest product with one of the queries [h, r, d] of each key that a search reaches, -inf for all others: [h, n].

    keys [h, n, d]. entry_of [h, tokens]: where the key at a position lies, n for one that has left. edges [h, tokens,
    degree] and first [h, m], where the search begins: positions. steps: width and hops: in each hop it follows the
    edges of the `width` best keys that it has not followed yet, and goes to their neighbours in the text.
    """
    width, hops = steps
    heads, stored = keys.shape[:2]
    scores = torch.full((heads, stored + 1), -torch.inf, device=keys.device)
    position_of = torch.zeros(heads, stored + 1, dtype=torch.int64, device=keys.device)
    position_of.scatter_(1, entry_of, torch.arange(entry_of.shape[1], device=keys.device).expand_as(entry_of))
    followed, nothing = (torch.zeros_like(scores, dtype=torch.bool) for _ in range(2))
    new = entry_of.gather(1, first)
    for hop in range(hops + 1):
        index = new.clamp(max=stored - 1)[..., None].expand(-1, -1, keys.shape[2])
        scores.scatter_(1, new, (queries @ keys.gather(1, index).float().mT).amax(1))
        scores[:, stored] = -torch.inf
        if hop == hops:
            break
        best = torch.stack(choose(scores.masked_fill(followed, -torch.inf), min(width, stored), nothing))
        reached = scores.gather(1, best).isfinite()
        followed.scatter_(1, best, reached | followed.gather(1, best))
        at = position_of.gather(1, best)
        beside = torch.stack((at - 1, at + 1), 2).clamp(0, entry_of.shape[1] - 1)
        to = torch.cat((edges.gather(1, at[..., None].expand(-1, -1, edges.shape[2])), beside), 2)
        to = entry_of.gather(1, to.flatten(1)).view_as(to)
        new = to.masked_fill(~reached[..., None], stored).flatten(1)
    return scores[:, :stored]
