"""Two threads, each with a cache of its own, on one model: what each writes is what it writes alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

import torch
from hypothesis import strategies as st

from headwise.errors import SessionError
from headwise.seams.transformers.attach import attach
from tests.fuzz import Machine, of_function
from tests.fuzz.recipes import Sentences, plan, sentences
from tests.fuzz.state import differences, state
from tests.fuzz.subjects import Step, Tokens, tiny_model


def conversation(drawn: Sentences, seed: int) -> tuple[Tokens, list[torch.Tensor]]:
    """A cache after some forwards, and their logits."""
    rng, outs = Random(seed), []
    rows = rng.randint(1, 2)
    subject = Tokens(plan(attach(tiny_model()).geometry, drawn, by_layer=bool(seed % 2)), {"seed": seed})
    for i in range(rng.randint(3, 8)):
        tokens = rng.choice((17, 40)) if i == 0 or rng.random() < 0.2 else rng.choice((1, 1, 16))
        step = Step(tokens, "prefill", (tokens,) * rows, rng.randrange(2**16))
        outs.append(subject.step(step))
        if rng.random() < 0.2:
            subject = subject.fork()
    return subject, outs


def two_threads(both: tuple[Sentences, Sentences], seed: int) -> None:
    """Two conversations at once, and each alone."""
    try:
        alone = [conversation(drawn, seed + i) for i, drawn in enumerate(both)]
    except SessionError:  # a recipe that must see the whole prompt at once
        return
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(conversation, both, (seed, seed + 1)))
    for (want, expected), (have, outs) in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))
        assert want.session is not None and have.session is not None
        assert not differences(state(have.session), state(want.session))


def machines() -> dict[str, Machine]:
    """By name."""
    return {"threads": of_function(two_threads, both=st.tuples(sentences(), sentences()), seed=st.integers(0, 2**16))}
