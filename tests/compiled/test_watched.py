"""What a compiled layer notices of its parts, told by `Watched` alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from headwise.seams.transformers.watched import Watched


def made() -> tuple[Any, Watched]:
    parent: Any = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    places = [(parent, str(at), child) for at, child in enumerate(parent)]
    return parent, Watched(places, [(parent[1], "eps", parent[1].eps)])


def test_what_stands_is_told_to_stand() -> None:
    _, watched = made()
    assert watched.stand() and watched.complete() and len(watched.weights()) == 4
    assert watched.places() == watched.places()


def test_weights_that_lie_elsewhere_or_otherwise_are_noticed() -> None:
    parent, watched = made()
    before, weight = watched.places(), parent[0].weight
    weight.data = weight.data.t()  # at the same address
    turned = watched.places()
    weight.data = weight.data.clone()
    assert before != turned != watched.places() and watched.stand()
    parent[0].bias = None
    assert not watched.complete()


def test_parts_that_are_changed_do_not_stand() -> None:
    parent, watched = made()
    hook = parent[0].register_forward_hook(lambda *_: None)
    assert not watched.stand()
    hook.remove()
    assert watched.stand()
    parent[1].eps = 1.0
    assert not watched.stand()
    parent, watched = made()
    parent[0] = nn.Linear(4, 4)
    assert not watched.stand()
    parent, watched = made()
    parent[0].forward = torch.relu
    assert not watched.stand()
