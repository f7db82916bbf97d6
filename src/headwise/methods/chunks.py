"""Chunks of keys, cut where the attention that tokens get changes (DHSA, 2510.24606), or where keys foretell it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import gelu, max_pool1d, normalize, pad, softplus

from headwise.attention.view import View

SIDE = 4  # tokens on either side of a boundary whose attention is compared, as in the paper


def changes(mass: torch.Tensor) -> torch.Tensor:
    """Natural log of how much more attention `mass [h, n]` one side of each token got than the other, the token and the
    SIDE - 1 after it against the SIDE before it: [h, n], 0 for the first, before which nothing lies."""
    sums = pad(mass, (SIDE, SIDE - 1)).unfold(1, SIDE, 1).sum(-1)
    before, after = sums[:, : mass.shape[1]], sums[:, SIDE:]
    change = torch.maximum(before, after) / torch.minimum(before, after).clamp(min=1e-30)
    change[:, 0] = 1
    return change.log()


def cut(changes: torch.Tensor, least: float) -> torch.Tensor:
    """Where a chunk begins, bool [h, n]: at the first token, and where `changes [h, n]` are above `least` and the
    largest within SIDE tokens on either side."""
    around = max_pool1d(changes[:, None], 2 * SIDE + 1, stride=1, padding=SIDE)[:, 0]
    starts = (changes > least) & (changes == around)
    starts[:, 0] = True
    return starts


def spread(keys: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """For each token the vector of its chunk, [h, n, d]: the mean of its keys times the square root of its length."""
    chunk = starts.cumsum(1) - 1
    sums = torch.zeros_like(keys).scatter_add(1, chunk[..., None].expand_as(keys), keys)
    lengths = torch.zeros_like(keys[..., 0]).scatter_add(1, chunk, torch.ones_like(keys[..., 0]))
    vectors = sums / lengths.clamp(min=1).sqrt()[..., None]
    return vectors.gather(1, chunk[..., None].expand_as(keys))


def both_sides(view: View, entries: slice | torch.Tensor = slice(None)) -> torch.Tensor:
    """What the network sees of each token, or of those at `entries [m]`, [h, m, 4 d + 3]: the directions of the mean
    keys before it and from it on, before rotation, how they differ and agree, their cosine, the change of their length,
    and 1."""
    keys = view.keys.float()
    keys = keys if view.rope is None else view.rope.unrotate(keys, view.positions)
    sums = pad(keys.mT, (SIDE, SIDE - 1)).unfold(2, SIDE, 1).sum(-1).mT
    before, after = sums[:, : view.count][:, entries], sums[:, SIDE:][:, entries]
    longer = (after.norm(dim=-1, keepdim=True) + 1e-6).log() - (before.norm(dim=-1, keepdim=True) + 1e-6).log()
    before, after = (normalize(one, dim=-1) * one.shape[-1] ** 0.5 for one in (before, after))
    alike = (before * after).mean(-1, keepdim=True)
    told = (before, after, (before - after).abs(), before * after, alike, longer.clamp(-3, 3), torch.ones_like(alike))
    return torch.cat(told, -1)


def foretold(sides: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What `changes` will be, [h, n], by the network of each head: `hidden [h, 4 d + 3, u]` and `out [h, u]` units."""
    return softplus(torch.einsum("hnu,hu->hn", gelu(sides @ weights["hidden"].float()), weights["out"].float()))


def plain_foretold(view: View, head: int) -> list[float]:
    """`foretold` of one head of a view, token by token."""
    keys, found = view.keys[head].float(), []
    keys = (keys if view.rope is None else view.rope.unrotate(keys, view.positions[head])).double()
    hidden, out = (view.calibration[name][head].double() for name in ("hidden", "out"))
    for j in range(len(keys)):
        told, lengths = [], []
        for side in (keys[max(0, j - SIDE) : j].sum(0), keys[j : j + SIDE].sum(0)):
            lengths.append(float(side.norm()))
            told.append(side / max(lengths[-1], 1e-12) * len(side) ** 0.5)
        one, other = told
        longer = math.log(lengths[1] + 1e-6) - math.log(lengths[0] + 1e-6)
        last = torch.tensor([float((one * other).mean()), max(-3.0, min(3.0, longer)), 1.0], dtype=torch.float64)
        units = gelu(torch.cat((one, other, (one - other).abs(), one * other, last)) @ hidden)
        found.append(math.log1p(math.exp(float(units @ out))))
    return found
