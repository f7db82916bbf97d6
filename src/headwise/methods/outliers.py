"""How much a key stands out, whatever is asked later (Compactor, 2507.08143): by leverage, and among its neighbours."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool1d

from headwise.attention.view import View

RIDGE = 1e-2  # added to the diagonal, as in the released code


def sketch(view: View, width: int) -> torch.Tensor:
    """A Gaussian matrix [d, width] that all heads of a layer share, drawn from the session's seed; that changes nothing
    where it would not be smaller than the keys."""
    if width >= view.keys.shape[-1]:
        return torch.eye(view.keys.shape[-1], dtype=torch.float64, device=view.keys.device)
    generator = torch.Generator().manual_seed(view.seed * 1009 + view.layer)
    drawn = torch.randn(view.keys.shape[-1], width, generator=generator, dtype=torch.float64) / width**0.5
    return drawn.to(view.keys.device)


def leverage(view: View, width: int, among: torch.Tensor | None = None) -> torch.Tensor:
    """Ridge leverage scores [h, n] of the keys before rotation, centred and sketched to `width` channels, among all
    stored keys or those of `among` bool [h, n]."""
    keys = view.keys.float() if view.rope is None else view.rope.unrotate(view.keys.float(), view.positions)
    keys = keys.double()
    counted = torch.ones_like(keys[..., :1]) if among is None else among[..., None].double()
    mean = (keys * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    rows = (keys - mean) @ sketch(view, width)
    products = (rows * counted).mT @ rows
    products.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
    return (rows * torch.linalg.solve(products, rows.mT).mT).sum(-1)


def among_neighbours(view: View, size: int, first: int) -> torch.Tensor:
    """What each token [h, n] gets when the tokens of its chunk of `size` attend to all of the chunk, later ones too:
    summed over the queries at hand, averaged over the group, times the length of its value, and over three tokens.

    Chunks are counted from position `first`. Products are not scaled, as in the released code.
    """
    chunks, asking = (torch.div(x - first, size, rounding_mode="floor") for x in (view.positions, view.query_positions))
    got = torch.zeros(view.positions.shape, dtype=torch.float64, device=view.keys.device)
    for chunk in range(max(0, int(asking[0])), int(asking[-1]) + 1):
        inside = chunks == chunk
        places = inside.any(0).nonzero()[:, 0]
        if len(places):
            own = slice(int(places[0]), int(places[-1]) + 1)
            logits = view.queries[:, :, asking == chunk].double() @ view.keys[:, None, own].double().mT
            weights = logits.masked_fill(~inside[:, None, None, own], -1e30).softmax(-1)
            got[:, own] += weights.mean(1).sum(1) * inside[:, own]
    return avg_pool1d((got * view.values.double().norm(dim=-1))[:, None], 3, stride=1, padding=1)[:, 0]


def noted(view: View, size: int, first: int) -> torch.Tensor:
    """Notes [h, n, 1] in which new tokens have what they get `among_neighbours`, and others what they had."""
    known = view.notes[..., :1]
    return torch.where(known > 0, known, among_neighbours(view, size, first)[..., None].clamp(min=1e-30).float())


def plain_leverage(view: View, width: int, among: torch.Tensor | None = None) -> torch.Tensor:
    """`leverage`, by the inverse and one token at a time."""
    rows, turn = [], sketch(view, width)
    for head, (keys, positions) in enumerate(zip(view.keys, view.positions, strict=True)):
        own = torch.stack([
            (key if view.rope is None else view.rope.unrotate(key[None], place[None])[0]).double()
            for key, place in zip(keys, positions, strict=True)
        ])  # fmt: skip
        counted = [i for i in range(view.count) if among is None or bool(among[head, i])]
        low = (own - own[counted].sum(0) / max(1, len(counted))) @ turn
        products = RIDGE * torch.eye(turn.shape[1], dtype=torch.float64)
        for i in counted:
            products += torch.outer(low[i], low[i])
        inverse = torch.linalg.inv(products)
        rows.append(torch.stack([row @ inverse @ row for row in low]))
    return torch.stack(rows)


def plain_noted(view: View, size: int, first: int) -> torch.Tensor:
    """`noted`, one query and one token at a time."""
    notes, group = view.notes[..., :1].double(), view.queries.shape[1]
    for h, positions in enumerate(view.positions.tolist()):
        keys, worth = view.keys[h].double(), [0.0] * view.count
        for i, asking in enumerate(view.query_positions.tolist()):
            inside = [j for j, place in enumerate(positions) if (place - first) // size == (asking - first) // size]
            for query in view.queries[h, :, i].double() if inside and asking >= first else ():
                given = torch.stack([query @ keys[j] for j in inside]).softmax(0).tolist()
                for j, weight in zip(inside, given, strict=True):
                    worth[j] += weight / group
        worth = [x * float(value.double().norm()) for x, value in zip(worth, view.values[h], strict=True)]
        for j in range(view.count):
            if not notes[h, j, 0] > 0:
                notes[h, j, 0] = max(sum(worth[max(0, j - 1) : j + 2]) / 3, 1e-30)
    return notes.float()
