"""Mirostat: sampling that holds the surprise of a text at a number."""

from __future__ import annotations

import math

import torch

from headwise.errors import HeadwiseError


class Mirostat:
    """A logits processor for `generate(do_sample=True, logits_processor=[Mirostat()])`, for one generation: tokens that
    would surprise by more than a limit are left out, and the limit follows from how much those drawn did (Basu et al.,
    arXiv 2007.14966, algorithm 2).

    tau: the surprise to hold, in bits. rate: how quickly the limit follows. Top-k and top-p are to be left off, as they
    come after it.
    """

    def __init__(self, tau: float = 3.0, rate: float = 0.1) -> None:
        if tau <= 0 or rate <= 0:
            raise HeadwiseError(f"tau={tau}, rate={rate}: give numbers above 0")
        self.tau, self.rate = tau, rate
        self.limits: torch.Tensor | None = None  # [b], in bits
        self.surprises: torch.Tensor | None = None  # [b, vocab], of the last step

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """ids [b, n] and the scores [b, vocab] of what follows -> scores with -inf where a token surprises too much."""
        if self.limits is None or self.surprises is None:
            self.limits = scores.new_full((len(scores),), 2 * self.tau)
        else:
            drawn = self.surprises.gather(1, ids[:, -1:])[:, 0]
            self.limits = self.limits - self.rate * (drawn - self.tau)
        found = -scores.log_softmax(-1) / math.log(2)
        out = found > self.limits[:, None]
        out.scatter_(1, scores.argmax(-1, keepdim=True), value=False)  # the likeliest is never left out
        left = scores.masked_fill(out, -torch.inf)
        self.surprises = -left.log_softmax(-1) / math.log(2)
        return left
