"""MoA's choice: of all spans of a mean density, those that cost the heads least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headwise.errors import HeadwiseError

BLOCK = 64  # tokens; spans are whole blocks, and the first block is always seen


@dataclass(frozen=True)
class Choices:
    """Spans that a head may have: alpha tokens + beta of the context, `spans [candidates, 2]`."""

    spans: torch.Tensor

    @classmethod
    def default(cls, tokens: int) -> Choices:
        """Alpha from one block to `tokens` in powers of two, beta 0 to 1 in eighths, and everything."""
        alphas = [BLOCK * 2**i for i in range(max(1, (tokens // BLOCK).bit_length()))]
        pairs = [(float(a), b / 8) for a in alphas for b in range(8)]
        return cls(torch.tensor([*pairs, (0.0, 1.0)]))

    def blocks(self, tokens: int) -> torch.Tensor:
        """Blocks [candidates] that each span means for so many tokens."""
        alpha, beta = self.spans.unbind(1)
        return ((alpha + beta * tokens) / BLOCK).ceil().long().clamp(max=-(-tokens // BLOCK))

    def density(self, tokens: int) -> torch.Tensor:
        """Share [candidates] of so many tokens that each keeps, the first block with it."""
        return ((self.blocks(tokens) + 1) * BLOCK / tokens).clamp(max=1.0)

    def losses(self, sensitivity: torch.Tensor, tokens: int) -> torch.Tensor:
        """What each costs every head: [layers * kv_heads, candidates], from losses [layers, kv_heads, blocks + 1]."""
        return sensitivity.flatten(0, 1)[:, self.blocks(tokens).clamp(max=sensitivity.shape[2] - 1)]


def check_ladder(lengths: Sequence[int], density: float) -> None:
    """Raise HeadwiseError unless spans of this mean density can be found for texts of these lengths."""
    if len(lengths) < 3 or list(lengths) != sorted(set(lengths)):
        raise HeadwiseError(f"spans are chosen for three or more ascending lengths, got {list(lengths)}")
    least = float(Choices.default(lengths[-1]).density(lengths[0]).min())
    if least > density:
        raise HeadwiseError(
            f"of {lengths[0]} tokens the shortest span is {least:.2f}, more than the density of {density}; give longer "
            "texts (--context), a higher density, or leave 'spans' out"
        )


def choose_spans(
    measured: Sequence[torch.Tensor], lengths: Sequence[int], density: float, choices: Choices | None = None
) -> torch.Tensor:
    """Spans [layers, kv_heads, 2], alpha tokens and beta of the context, of mean density at most `density` throughout.

    measured: losses of `span_losses` at ascending `lengths`, three or more. Spans are found for the shortest length and
    the longest but one, for several weights of the two; the plan of least loss at the longest is kept (MoA, section
    4.2). A density linear in 1 / length that holds at both ends holds between.
    """
    check_ladder(lengths, density)
    choices = choices or Choices.default(lengths[-1])
    ends = (0, len(lengths) - 2)
    costs = [choices.density(lengths[i]) for i in ends]
    losses = [choices.losses(measured[i], lengths[i]) for i in ends]
    unseen = choices.losses(measured[-1], lengths[-1])
    plans = [exact_choice(w * losses[0] + (1 - w) * losses[1], costs, density) for w in (0.0, 0.5, 1.0)]
    best = min(plans, key=lambda plan: float(unseen.gather(1, plan[:, None]).sum()))
    return choices.spans[best].unflatten(0, measured[0].shape[:2])


def exact_choice(losses: torch.Tensor, costs: Sequence[torch.Tensor], mean: float, most: int = 512) -> torch.Tensor:
    """One candidate per head, int64 [heads], of least total loss [heads, candidates] with a mean of each of two costs
    [candidates] of at most `mean`: by dynamic programming over what is spent, in about `most` units rounded up.

    Raises HeadwiseError when even the cheapest candidates cost more.
    """
    heads = losses.shape[0]
    whole = max(1, int(most / (mean * heads)))  # units of a cost of 1
    spent = [(cost * whole - 1e-4).ceil().long() for cost in costs]
    most = int(mean * heads * whole + 1e-4)
    table = torch.zeros(most + 1, most + 1)
    taken = torch.empty(heads, most + 1, most + 1, dtype=torch.int16)
    for head in range(heads):
        after = torch.full_like(table, torch.inf)
        for one, (a, b) in enumerate(zip(*(x.tolist() for x in spent), strict=True)):
            if max(a, b) > most:
                continue
            reached = table[: most + 1 - a, : most + 1 - b] + losses[head, one]
            open_to = after[a:, b:]
            taken[head, a:, b:].masked_fill_(reached < open_to, one)
            torch.minimum(reached, open_to, out=open_to)
        table = after
    if not bool(table[-1, -1].isfinite()):
        raise HeadwiseError(f"even the cheapest candidates cost more than {mean} on average; give more")
    a, b, chosen = most, most, []
    for head in reversed(range(heads)):
        one = int(taken[head, a, b])
        chosen.append(one)
        a, b = a - int(spent[0][one]), b - int(spent[1][one])
    return torch.tensor(chosen[::-1])
