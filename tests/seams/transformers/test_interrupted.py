"""A forward that was interrupted and left so, its cache dropped, does not disturb the next, over another or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import headwise
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.forward import forward
from tests.engine.small import build, tokens


def test_a_forward_left_between_cache_and_attention_does_not_disturb_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(), tokens(20)
    with torch.no_grad():
        expected, dense = forward(model, headwise.Cache(model), ids).logits, model(ids, use_cache=False).logits
        update = Door.update

        def interrupted(*args: object, **kwargs: object) -> None:
            update(*args, **kwargs)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        for cached in (True, False):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Door, "update", interrupted)
                forward(model, headwise.Cache(model), ids)
            if cached:
                assert torch.equal(forward(model, headwise.Cache(model), ids).logits, expected)
            else:
                assert torch.equal(model(ids, use_cache=False).logits, dense)


def test_an_error_after_going_back_to_the_start_keeps_what_was_noted() -> None:
    model = build()
    cache = headwise.Cache(model, "streaming(20, sinks=2, recent=4)")
    with torch.no_grad():
        forward(model, cache, tokens(60))
        cache.truncate(0)
        with pytest.raises(RuntimeError, match="planted"), failing_head(model):
            forward(model, cache, tokens(20))
    cache.abort()
    assert cache.session is not None
    assert cache.session.seen == [0]
    assert cache.session.ledger.evictions


@contextmanager
def failing_head(model: torch.nn.Module) -> Iterator[None]:
    """A model that fails behind its last layer."""

    def fail(*args: object) -> None:
        raise RuntimeError("planted")

    hook = model.lm_head.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()
