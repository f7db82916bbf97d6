"""From logits to a token, and what is told of its probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import likeliest


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature: 0 takes the likeliest. top_p: of the likeliest tokens that together have this
    probability. seed: of the draws; choice i of a request draws with seed + i."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Chance:
    """A token and the logarithm of its probability, before temperature and top_p."""

    token: int
    logprob: float


class Sampler:
    """Draws the tokens of one choice. Its draws depend on its seed and its own logits alone."""

    def __init__(self, sampling: Sampling, choice: int = 0) -> None:
        self.sampling = sampling
        self.drawn = torch.Generator().manual_seed((sampling.seed + choice) % 2**63)

    def draw(self, logits: torch.Tensor) -> int:
        """A token by its logits [vocab]."""
        if not self.sampling.temperature:
            return likeliest(logits)
        scaled = logits.double().cpu() / self.sampling.temperature
        probabilities, tokens = scaled.softmax(-1).sort(descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= self.sampling.top_p] = 0.0  # the likeliest has nothing before it and always stays
        return int(tokens[torch.multinomial(probabilities, 1, generator=self.drawn)])


def chances(logits: torch.Tensor, token: int, top: int) -> tuple[Chance, ...]:
    """Of logits [vocab]: the chance of `token`, and after it those of the `top` likeliest."""
    logprobs = logits.float().log_softmax(-1)
    likeliest = logprobs.topk(min(top, len(logprobs)))
    best = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return (Chance(token, float(logprobs[token])), *(Chance(*one) for one in best))
