"""What the heads of a cache keep, told while its request is answered."""

from __future__ import annotations

from headwise.seams.transformers.cache import Cache
from headwise.serve.request import Look

EVERY = 8  # tokens written between two looks


def look(cache: Cache) -> Look | None:
    """How much each head of a cache of one row keeps now; None before its first tokens."""
    session = cache.session
    if session is None:
        return None
    layers = session.plan.geometry.attending
    kept = tuple(tuple(session.lengths(layer)[0].tolist()) for layer in layers)
    return Look(session.passed, kept, session.cache_bytes(), session.dense_bytes())
