"""Attention that comes back at a stride falls on few blocks once tokens are put in the order of their place in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Part, register
from headwise.forms import Where
from headwise.methods.prefill.grid import FrameGrid
from headwise.theory.fitting import generator
from headwise.theory.operators import attended, drawn, error, scoring, view_of

WIDTH, BLOCK, NEAR = 32, 16, 16  # channels; tokens of a block, and always read


@register("frame_grid")
@dataclass(frozen=True, kw_only=True)
class FrameGridMass(Experiment):
    """Tokens of a video: frames of one length, drawn between 24 and 40 tokens, whose tokens attend to those at their
    own place in all frames before.

    tokens: of the video. sharpness: of the attention to a token's own place, in nats over any other.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="MMInference's grid head on frames",
        statement="Where attention comes back at a frame's stride, permuted blocks hold at least 95 % of it, and as "
        "many blocks in the old order hold less; permuting and back is masked attention",
        paper="MMInference: Accelerating Pre-filling for Long-Context VLMs via Modality-Aware Permutation Sparse "
        "Attention, arXiv 2504.16083, section 3.1",
        setting="blocks of 64, stride and phase from the last 64 queries",
        seconds=10,
        systems=(243,),
        differs="blocks of 16 and a window of 16, on drawn tokens; the blocks in the old order are the best that there "
        "are, chosen by the attention itself",
        leaves_out="the heads at the borders of modalities, the search for each head's pattern, and anything over "
        "plain diagonals, which hold as much of such attention in half the pairs",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("attention in the permuted blocks, share", "permuted", "unpermuted",
             "as many pairs in the best blocks of the old order", above=0.95),
        Part("permuted and back, largest difference to masked attention", "same", "not_back",
             "the outputs left in the permuted order", below=1e-5),
    )  # fmt: skip

    tokens: Annotated[int, Ge(256), Le(4096)] = 1024
    sharpness: Annotated[float, Ge(1.0), Le(20.0)] = 9.0

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of the attention, and differences."""
        chance = generator(self.name, seed)
        frame = int(torch.randint(24, 41, (1,), generator=chance))
        q, k, v = self._video(chance, frame)
        where = FrameGrid(first=1, nearest=NEAR, size=BLOCK).where(view_of(q, k, v))
        weights, seen = _weights(q, k), where.dense(self.tokens, self.tokens)[0]
        found, true = attended(q, k, v, where).out[0, 0], _masked(weights, seen, v)
        order = (torch.arange(self.tokens) % frame).argsort(stable=True)
        permuted, best = _share(weights, seen), _share(weights, _best_blocks(weights, where, self.tokens))
        return {
            "measures": {
                "permuted": permuted,
                "unpermuted": best,
                "same": error(found, true),
                "not_back": error(found[order], true),
            },
        }

    def _video(self, chance: torch.Generator, frame: int) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values whose scores are `sharpness` at a token's own place, and about 0 elsewhere."""
        places = torch.nn.functional.normalize(torch.randn(frame, WIDTH, generator=chance), dim=-1)
        own = places[torch.arange(self.tokens) % frame] * (self.sharpness * WIDTH**0.5) ** 0.5
        q, k, v = drawn(chance, 1, self.tokens, WIDTH)
        return 0.1 * q + own, 0.1 * k + own, v


def _weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Causal attention [n, n] of one head."""
    n = k.shape[1]
    scores = (q[0, 0] @ k[0].T * scoring(q).scale).masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1)


def _share(weights: torch.Tensor, seen: torch.Tensor) -> float:
    """Of all attention, what falls on the pairs that are seen."""
    return float((weights * seen).sum(-1).mean())


def _masked(weights: torch.Tensor, seen: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What attention gives over the pairs that are seen."""
    kept = weights * seen
    return kept / kept.sum(-1, keepdim=True) @ v[0]


def _best_blocks(weights: torch.Tensor, where: Where, tokens: int) -> torch.Tensor:
    """Of whole blocks in the old order, those with most attention a pair, until as many pairs are seen; the window and
    the first token are seen here, too."""
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    near = causal & ~causal.tril(-NEAR)
    near[:, 0] = True
    held = _by_block(weights * ~near)
    pairs, budget = _by_block((causal & ~near).float()), where.visible_pairs(tokens, tokens) - float(near.sum())
    order = (held / pairs.clamp(min=1)).flatten().argsort(descending=True)
    taken = pairs.flatten()[order].cumsum(0) <= budget + BLOCK * BLOCK
    chosen = torch.zeros_like(pairs).flatten().index_fill(0, order[taken], 1).bool().view_as(pairs)
    return near | (causal & chosen.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1))


def _by_block(of: torch.Tensor) -> torch.Tensor:
    """Sums over blocks [n / size, n / size]."""
    count = len(of) // BLOCK
    return of.view(count, BLOCK, count, BLOCK).sum((1, 3))
