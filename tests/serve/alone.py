"""What a request answers when nothing runs beside it, by the plain loop over one cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from transformers import PreTrainedModel

from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers import drive
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.forward import forward
from headwise.serve.pieces import cut
from headwise.serve.promise import reads_whole


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Random token ids of the tiny model."""
    return torch.randint(2, 512, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Alone:
    """A greedy answer. cache: as it was after the prompt, a fork. read: most bytes after a piece of the prompt but the
    last. peak: most bytes between two steps."""

    cache: Cache
    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    read: int = 0
    peak: int = 0


def alone(
    model: PreTrainedModel,
    recipe: str | Recipe | Plan,
    ids: Sequence[int],
    new: int,
    piece: int,
    *,
    gather: bool = False,
    mark: int = 0,
) -> Alone:
    """Read a prompt in pieces and write `new` tokens, each by a forward of one row. gather: as a Cache's. mark: so many
    tokens, a multiple of `piece`, are read as a prompt of their own."""
    cache, read, peak = Cache(model, recipe, gather=gather), 0, 0
    logits, pieces = torch.empty(0), cut(ids, None if reads_whole(cache.plan) else piece)
    first = drive.read_pieces(model, cache, pieces[: mark // piece]) if mark else ()
    for after in chain(first, drive.read_pieces(model, cache, pieces[mark // piece :])):
        logits, read, peak = after, peak, max(peak, cache.session.cache_bytes())
    found = Alone(cache.fork(), read=read, peak=peak)
    for _ in range(new):
        found.ids.append(int(logits.argmax()))
        found.logits.append(logits[0])
        token = torch.tensor([[found.ids[-1]]])
        with torch.no_grad():
            logits = forward(model, cache, token, logits_to_keep=1).logits[:, -1]
        found.peak = max(found.peak, cache.session.cache_bytes())
    return found
