"""Texts cut into regions, and softmaxes within each."""

from __future__ import annotations

import torch
from torch import Tensor


def regions(starts: Tensor) -> Tensor:
    """The number of the region of each key, counted over all texts of a row; `starts [..., keys]` is where one
    begins."""
    return starts.long().cumsum(-1).sub(1).clamp_min(0)


def region_softmax(scores: Tensor, region: Tensor, seen: Tensor) -> Tensor:
    """A softmax of `scores [..., keys]` over each region of the keys that are `seen`, 0 elsewhere."""
    hidden = scores.masked_fill(~seen, float("-inf"))
    top = torch.full_like(scores, float("-inf")).scatter_reduce(-1, region, hidden.detach(), "amax")
    risen = (hidden - top.gather(-1, region).nan_to_num(neginf=0.0)).exp()
    total = torch.zeros_like(scores).scatter_add(-1, region, risen)
    return risen / total.gather(-1, region).clamp_min(1e-30)
