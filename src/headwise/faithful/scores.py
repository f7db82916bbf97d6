"""What decoders compute of distributions, by their logarithms [..., vocab], in nats."""

from __future__ import annotations

import math

import torch


def entropy(logs: torch.Tensor) -> torch.Tensor:
    """Entropies [...]."""
    return torch.special.entr(logs.exp()).sum(-1)


def divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergences [...], 0 to log 2."""
    middle = torch.logaddexp(one, other) - math.log(2)
    terms = [logs.exp() * (logs - middle) for logs in (one, other)]
    return 0.5 * (terms[0] + terms[1]).nan_to_num(0.0).sum(-1)


def plausible(logs: torch.Tensor, least: float) -> torch.Tensor:
    """Which tokens [..., vocab] are at least `least` times as probable as the best one."""
    return logs >= logs.amax(-1, keepdim=True) + math.log(least)


def contrasted(logs: torch.Tensor, other: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """The logarithms of probabilities proportional to p ** (1 + weight) / q ** weight."""
    return ((1 + weight) * logs - weight * other).log_softmax(-1)
