"""The attention that measures put in the place of a model's own."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import attend
from headwise.forms import Causal, Scoring, Window
from headwise.observe import LayerAttention


def layer(tokens: int, seed: int = 0, softcap: float | None = None, window: int | None = None) -> LayerAttention:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, tokens, 16, generator=generator) for heads in (4, 2, 2))
    return LayerAttention(0, q, k, v, Scoring(0.25, softcap), window)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 10])
def test_full_attention_is_the_layers_own(softcap: float | None, window: int | None) -> None:
    one = layer(40, softcap=softcap, window=window)
    where = Causal() if window is None else Window(window - 1)
    truth = attend(one.q[0].unflatten(0, (2, 2)), one.k[0], one.v[0], where, one.scoring).out
    torch.testing.assert_close(one.full()[0], truth.flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("sinks", "recent"), [(128, 256), (300, 100), (4, 64), (0, 32), (700, 16)])
def test_streaming_attention_is_a_window_with_sinks(sinks: int, recent: int) -> None:
    one = layer(600, sinks)
    truth = attend(one.q[0].unflatten(0, (2, 2)), one.k[0], one.v[0], Window(recent - 1, sinks), one.scoring).out
    torch.testing.assert_close(one.streaming(sinks, recent)[0], truth.flatten(0, 1), atol=1e-5, rtol=1e-5)
