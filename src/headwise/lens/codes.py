"""Heads of a circuit by codes: what a head writes, as the strongest feature of a sparse autoencoder (2405.12522)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import mse_loss

RATE, SPARSITY = 3e-3, 0.02


@dataclass(frozen=True, eq=False)
class Encoder:
    """The encoder of a sparse autoencoder: features are relu(x W + b). weight [width, features], bias [features]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def codes(self, outputs: torch.Tensor) -> torch.Tensor:
        """The number of the strongest feature of each of outputs [..., width]."""
        return (outputs @ self.weight + self.bias).argmax(-1)


def trained_encoder(outputs: torch.Tensor, features: int, steps: int, seed: int) -> Encoder:
    """An autoencoder of outputs [n, width], by Adam on the squared error and the mean of its features."""
    chance = torch.Generator().manual_seed(seed)
    width = outputs.shape[1]
    into = (torch.randn(width, features, generator=chance) / width**0.5).requires_grad_()
    back = (torch.randn(features, width, generator=chance) / features**0.5).requires_grad_()
    bias = torch.zeros(features, requires_grad=True)
    optimiser = torch.optim.Adam([into, back, bias], lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            hidden = (outputs @ into + bias).relu()
            loss = mse_loss(hidden @ back, outputs) + SPARSITY * hidden.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return Encoder(into.detach(), bias.detach())


def positive_share(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """By head, the share of its codes that occur on positive prompts alone, of codes [prompts, heads]: [heads]."""
    shares = []
    for own, other in zip(positive.T, negative.T, strict=True):
        codes = torch.cat((own, other)).unique()
        alone = torch.isin(codes, own) & ~torch.isin(codes, other)
        shares.append(alone.float().mean())
    return torch.stack(shares)


def auc(scores: torch.Tensor, members: torch.Tensor) -> float:
    """The area under the ROC curve of `scores [n]` for a bool set of `members [n]`: the share of pairs of a member and
    another in which the member's is higher, half of those that tie."""
    inside, outside = scores[members], scores[~members]
    higher = (inside[:, None] > outside).float() + 0.5 * (inside[:, None] == outside).float()
    return float(higher.mean())
