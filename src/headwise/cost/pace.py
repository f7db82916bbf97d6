"""How long a token takes after a long prompt, measured on the model itself without the minutes of reading one."""

from __future__ import annotations

import time
from statistics import median

import torch

from headwise.engine.rehearsal import evict_waiting
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import LEAST_CHUNK, feed
from headwise.seams.transformers.replay import read_once

STEPS = 5  # of decoding, after one that warms up


def token_seconds(model: PreTrainedModel, plan: Plan | str, tokens: int) -> float:
    """Median seconds of a decoding step of one sequence after a prompt of `tokens` under `plan`."""
    cache, ids = primed(model, plan, tokens), torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    taken = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        float(feed(model, cache, ids).sum())  # waits for the device
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def primed(model: PreTrainedModel, plan: Plan | str, tokens: int) -> Cache:
    """A cache as a prompt of `tokens` leaves it under `plan`, but for what the prompt says: a short one's queries, keys
    and values over and over. What a step costs is how many tokens are held, and how, not what they say.

    The prompt is stored, scored and evicted from, attended to only by methods that count attention mass, and never read
    again.
    """
    cache = Cache(model, plan)
    short = torch.arange(LEAST_CHUNK, device=model.device)[None]
    with cache.prompt(tokens), torch.no_grad():
        cache.reads(torch.zeros(1, tokens, dtype=torch.int64))
        for call in read_once(model, short).calls:
            q, k, v = (x.repeat(1, 1, -(-tokens // LEAST_CHUNK), 1)[:, :, :tokens] for x in (call.q, call.k, call.v))
            cache.absorb(call.layer, q, k, v, call.asked)
    assert cache.session is not None, "a prompt was absorbed"
    evict_waiting(cache.session)
    return cache
