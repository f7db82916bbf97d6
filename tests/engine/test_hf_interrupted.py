"""A forward that was interrupted and left so, its cache dropped, does not disturb the next, over another or none."""

from __future__ import annotations

import pytest
import torch

import headwise
from headwise.engine.door import Door
from headwise.engine.forward import forward
from tests.engine.test_hf_cache import build, tokens


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
