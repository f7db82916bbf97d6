"""Beginnings that are evicted of by themselves, before what follows them is read: what is kept of one depends on
nothing that is asked about it, so that all who ask share it as it is held, compressed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

import torch

from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import read_pieces, score_pieces, state_pieces
from headwise.serve.pieces import cuts
from headwise.serve.promise import reads_whole
from headwise.serve.request import Request

Read: TypeAlias = Callable[[PreTrainedModel, Cache, Sequence[torch.Tensor]], Generator[torch.Tensor, None, None]]


def way_of(request: Request) -> Read:
    """How the prompt of a request is read: for the chances of all its tokens, for their states, or for what follows."""
    if request.pooled is not None:
        return state_pieces
    return score_pieces if request.scored else read_pieces


def why_no_mark(plan: Plan) -> str:
    """Why a plan cannot evict of a beginning by itself; "" where it can."""
    if reads_whole(plan):
        return "a method of this recipe must see a prompt in one piece"
    if all(recipe.evict is None for row in plan.recipes for recipe in row):
        return "this recipe evicts nothing"
    return ""


def mark_of(evict_after: int, tokens: int, piece: int) -> int:
    """Where a prompt of `tokens` that is read in pieces is first evicted of: the last cut up to `evict_after`, its end
    apart; 0 where there is none."""
    return max((one for one in cuts(tokens, piece)[:-1] if one <= evict_after), default=0)


def read_marked(
    read: Read, model: PreTrainedModel, cache: Cache, pieces: Sequence[torch.Tensor], mark: int
) -> Generator[torch.Tensor, None, None]:
    """As `read`, the tokens up to `mark` as a prompt of their own, which was evicted of when their logits are given."""
    ends, at = [], cache.get_seq_length()
    for piece in pieces:
        at += piece.shape[1]
        ends.append(at)
    first = sum(end <= mark for end in ends)
    if first:
        yield from _ended(read(model, cache, pieces[:first]))
    yield from read(model, cache, pieces[first:])


def _ended(reading: Generator[torch.Tensor, None, None]) -> Iterator[torch.Tensor]:
    """What a prompt gives, the last of it once it has ended."""
    last: torch.Tensor | None = None
    for logits in reading:
        if last is not None:
            yield last
        last = logits
    if last is not None:
        yield last
