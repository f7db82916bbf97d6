"""Attention lenses: for each head a matrix that reads its output as the model's next token (arXiv 2310.16270)."""

from __future__ import annotations

import torch

RATE, BATCH = 1e-2, 128


def trained_lens(outputs: torch.Tensor, logits: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """A lens [width, vocabulary] for outputs [n, width] of one head, by Adam on the divergence of its distributions
    from those of the model's own logits [n, vocabulary]. Outputs are scaled to a mean square of 1 as it is trained."""
    chance = torch.Generator().manual_seed(seed)
    scale = outputs.square().mean().sqrt().clamp(min=1e-12)
    lens = torch.zeros(outputs.shape[1], logits.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([lens], lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(outputs), (min(BATCH, len(outputs)),), generator=chance)
            loss = divergence(logits[rows], outputs[rows] / scale @ lens)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return lens.detach() / scale


def divergence(logits: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """KL of the distributions of logits `read` from those of `logits`, both [n, vocabulary]: the mean, in nats."""
    model = logits.log_softmax(-1)
    return (model.exp() * (model - read.log_softmax(-1))).sum(-1).mean()
