"""How much a key stands out, whatever is asked later (Compactor, 2507.08143): by leverage, and among its neighbours."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool1d

from headwise.attention.view import View

RIDGE = 1e-2  # added to the diagonal, as in the released code


def sketch(view: View, width: int) -> torch.Tensor:
    """A Gaussian matrix [d, width] that all heads of a layer share, drawn from the session's seed."""
    generator = torch.Generator().manual_seed(view.seed * 1009 + view.layer)
    drawn = torch.randn(view.keys.shape[-1], width, generator=generator, dtype=torch.float64) / width**0.5
    return drawn.to(view.keys.device)


def leverage(view: View, width: int) -> torch.Tensor:
    """Ridge leverage scores [h, n] of the keys before rotation, centred and sketched to `width` channels."""
    keys = view.keys.float() if view.rope is None else view.rope.unrotate(view.keys.float(), view.positions)
    keys = keys.double()
    rows = (keys - keys.mean(1, keepdim=True)) @ sketch(view, width)
    products = rows.mT @ rows
    products.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
    return (rows * torch.linalg.solve(products, rows.mT).mT).sum(-1)


def among_neighbours(view: View, size: int, first: int) -> torch.Tensor:
    """What each token [h, n] gets when the tokens of its chunk of `size` attend to all of the chunk, later ones too:
    summed over the queries at hand, averaged over the group, times the length of its value, and over three tokens.

    Chunks are counted from position `first`. Products are not scaled, as in the released code.
    """
    chunks, asking = (torch.div(x - first, size, rounding_mode="floor") for x in (view.positions, view.query_positions))
    got = torch.zeros(view.positions.shape, device=view.keys.device)
    for chunk in range(max(0, int(asking[0])), int(asking[-1]) + 1):
        inside = chunks == chunk
        places = inside.any(0).nonzero()[:, 0]
        if len(places):
            own = slice(int(places[0]), int(places[-1]) + 1)
            logits = view.queries[:, :, asking == chunk].float() @ view.keys[:, None, own].float().mT
            weights = logits.masked_fill(~inside[:, None, None, own], -1e30).softmax(-1)
            got[:, own] += weights.mean(1).sum(1) * inside[:, own]
    return avg_pool1d((got * view.values.float().norm(dim=-1))[:, None], 3, stride=1, padding=1)[:, 0]


def noted(view: View, size: int, first: int) -> torch.Tensor:
    """Notes [h, n, 1] in which new tokens have what they get `among_neighbours`, and others what they had."""
    known = view.notes[..., :1]
    return torch.where(known > 0, known, among_neighbours(view, size, first)[..., None].clamp(min=1e-30))


def plain_leverage(view: View, width: int) -> torch.Tensor:
    """`leverage`, by the inverse and one token at a time."""
    rows, turn = [], sketch(view, width)
    for keys, positions in zip(view.keys, view.positions, strict=True):
        own = torch.stack([
            (key if view.rope is None else view.rope.unrotate(key[None], place[None])[0]).double()
            for key, place in zip(keys, positions, strict=True)
        ])  # fmt: skip
        low = (own - own.mean(0)) @ turn
        inverse = torch.linalg.inv(low.T @ low + RIDGE * torch.eye(width, dtype=torch.float64))
        rows.append(torch.stack([row @ inverse @ row for row in low]))
    return torch.stack(rows)
