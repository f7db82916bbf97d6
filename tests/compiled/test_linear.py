"""The streamed linear layer against torch, at every level, and in a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwise.assets import embedded_model
from headwise.compiled import linear as layers
from headwise.compiled.linear import StreamedLinear, stream_linears
from headwise.kernels.native.library import LEVELS, missing, supported
from headwise.kernels.native.linear import linear
from headwise.seams.transformers.load import load_model

built = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")


@built
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equals_torch_on_odd_shapes(level: str, dtype: torch.dtype) -> None:
    if why := supported(level):
        pytest.skip(why)
    generator = torch.Generator().manual_seed(1)
    for rows, inner, outer in ((1, 1, 1), (1, 33, 7), (3, 64, 5), (4, 100, 9), (7, 256, 130), (16, 31, 1)):
        for bias in (False, True):
            x, weight = (torch.randn(n, inner, generator=generator).to(dtype) for n in (rows, outer))
            add = torch.randn(outer, generator=generator).to(dtype) if bias else None
            exact = nn.functional.linear(x.double(), weight.double(), None if add is None else add.double())
            got = linear(x, weight, add, level)
            close = 1e-5 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(got.double(), exact, atol=close * inner**0.5, rtol=close)


@built
def test_a_model_keeps_its_parameters_and_its_answers() -> None:
    model = load_model(embedded_model())
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = model(ids).logits
        parameters = dict(model.named_parameters())
        count = sum(type(one) is nn.Linear for one in model.modules())
        assert stream_linears(model) == count > 0
        assert all(one is parameters[name] for name, one in model.named_parameters())
        torch.testing.assert_close(model(ids).logits, before)  # a prompt: torch's own product
        step = model(ids[:, :4]).logits
    torch.testing.assert_close(step.float(), before[:, :4].float(), atol=0.15, rtol=0.05)
    assert stream_linears(model) == count  # a second call finds nothing left to replace


@built
def test_large_weights_move_and_stay_shared() -> None:
    embedding, layer = nn.Embedding(2048, 1024), nn.Linear(1024, 2048, bias=False)
    layer.weight = embedding.weight  # as many models have it
    model, before = nn.Sequential(embedding, layer).bfloat16(), embedding.weight.detach().clone()
    place = model[0].weight.data_ptr()
    stream_linears(model)
    assert model[1].weight is model[0].weight and torch.equal(model[0].weight, before.bfloat16())
    assert model[0].weight.data_ptr() != place and model[0].weight.requires_grad


def test_without_kernels_layers_stay_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "unusable", lambda: "the native kernels are not built")
    model = nn.Sequential(nn.Linear(16, 3))
    with pytest.warns(UserWarning, match="keep torch's product: the native kernels are not built"):
        assert stream_linears(model) == 0
    assert type(model[0]) is nn.Linear


def test_gradients_go_torch_s_way() -> None:
    layer = StreamedLinear(16, 3)
    layer(torch.ones(2, 16)).sum().backward()
    assert layer.weight.grad is not None
