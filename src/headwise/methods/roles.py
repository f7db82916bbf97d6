"""How long a token is seen: the three types of Neural Attention Search, told by a linear head on its key."""

from __future__ import annotations

import torch

from headwise.attention.view import View
from headwise.registry import CalibrationTensor

GLOBAL, LOCAL, NEAR = range(3)
ALWAYS = 2**31 - 1  # no query comes later
NEEDS = frozenset({"keys", "rope", "calibration"})
CALIBRATES = {"head": CalibrationTensor("d+1 3", "a linear head on the key, whose last row is a bias", "nats")}


def logits(view: View, stride: int) -> torch.Tensor:
    """Of the three types, [h, n, 3]: the calibration's `head` [h, d + 1, 3], whose last row is a bias, on the key
    before the rotary embedding. Without one, positions decide: every `stride`-th is global and the others are near."""
    keys = view.keys if view.rope is None else view.rope.unrotate(view.keys, view.positions)
    head = view.calibration.get("head", torch.zeros(len(view.heads), keys.shape[2] + 1, 3))
    head = head.to(keys.device, torch.float32)
    found = keys.float() @ head[:, :-1] + head[:, -1:]
    if "head" not in view.calibration:
        marked = view.positions.long() % stride == 0
        found = found + torch.stack((marked, torch.zeros_like(marked), ~marked), dim=-1)
    return found


def last_seen(types: torch.Tensor, positions: torch.Tensor, window: int) -> torch.Tensor:
    """Position [h, n] of the last query that sees each token, of `types [h, n]` at ascending `positions [h, n]`.

    A global token is seen by all, a local one up to the next global token, which still sees it, a near one by the next
    `window` queries (Neural Attention Search, 2502.13251, section 3).
    """
    marked = torch.where(types == GLOBAL, positions.long(), ALWAYS)
    coming = marked.flip(1).cummin(1).values.flip(1)  # the next global token; of a global one it is itself
    until = torch.where(types == LOCAL, coming, positions.long() + window)
    return torch.where(types == GLOBAL, ALWAYS, until)


def plain_last_seen(view: View, head: int, stride: int, window: int) -> list[int]:
    """`last_seen` of one head, token by token."""
    types, positions = logits(view, stride)[head].argmax(-1).tolist(), view.positions[head].tolist()
    found = []
    for j, (kind, place) in enumerate(zip(types, positions, strict=True)):
        later = [p for t, p in zip(types[j + 1 :], positions[j + 1 :], strict=True) if t == GLOBAL]
        found.append({GLOBAL: ALWAYS, LOCAL: min(later, default=ALWAYS), NEAR: place + window}[kind])
    return found


def merit(view: View, stride: int, window: int, query: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By which tokens are ranked for the query at position `query`, [h, n], and whether it sees them.

    What it sees comes first, by how much the token is global; then the others, the latest first.
    """
    said = logits(view, stride)
    there = last_seen(said.argmax(-1), view.positions, window) >= query
    share = said.softmax(-1)[..., GLOBAL]
    return torch.where(there, share, view.positions.float() - view.seen) + 0 * share, there  # no NaN is swallowed


def plain_merit(view: View, stride: int, window: int, query: int) -> tuple[list[list[float]], list[list[bool]]]:
    """The same, token by token."""
    ranks, seen = [], []
    for head, said in enumerate(logits(view, stride).double()):
        until = plain_last_seen(view, head, stride, window)
        seen.append([last >= query for last in until])
        shares = (said.exp() / said.exp().sum(-1, keepdim=True))[:, GLOBAL].tolist()
        places = view.positions[head].tolist()
        both = zip(seen[-1], shares, places, strict=True)
        ranks.append([share if alive else float(place - view.seen) for alive, share, place in both])
    return ranks, seen
