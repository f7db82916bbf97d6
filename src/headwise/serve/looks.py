"""What is told of a request while it is read and answered: what the heads of its cache keep, and how likely its own
tokens were."""

from __future__ import annotations

import torch

from headwise.seams.transformers.cache import Cache
from headwise.serve.request import Look, Request
from headwise.serve.sampling import Chance, chances

EVERY = 8  # tokens written between two looks


def look(cache: Cache) -> Look | None:
    """How much each head of a cache of one row keeps now; None before its first tokens."""
    session = cache.session
    if session is None:
        return None
    layers = session.plan.geometry.attending
    kept = tuple(tuple(session.lengths(layer)[0].tolist()) for layer in layers)
    return Look(session.passed, kept, session.cache_bytes(), session.dense_bytes())


def scores(logits: torch.Tensor, request: Request, read: int) -> tuple[tuple[Chance, ...], ...]:
    """The chances of the tokens of a prompt that follow its newest pieces' tokens: logits [t, vocab] after the last t
    of `read` ones; nothing of the token after the prompt."""
    following = request.ids[read - len(logits) + 1 : read + 1]
    return tuple(chances(row, token, request.logprobs or 0) for row, token in zip(logits, following, strict=False))
