"""Chains of layers after something of the model has changed: what counts is the model as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import headwise
from headwise.errors import SessionError
from headwise.kernels.native.library import missing
from headwise.seams.transformers.compiled import unlink_layers
from headwise.seams.transformers.forward import forward
from tests.compiled.test_chain import layers, steps
from tests.compiled.test_fast import build
from tests.engine.small import tokens

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")


def test_layers_that_are_called_in_another_order_are_computed_in_it_or_refused() -> None:
    ids = tokens(60)
    for order in ([0, 2, 1, 3], [0, 1, 3, 2]):
        model = build("qwen3")
        headwise.fast(model)
        model.model.layers = nn.ModuleList([model.model.layers[place] for place in order])
        if order[-1] != 3:
            with pytest.raises(SessionError, match="had not computed yet"):  # of the last one nobody knows that it is
                steps(model, headwise.Cache(model), ids, [1, 2])
            continue
        together = steps(model, headwise.Cache(model), ids, [1, 2])
        unlink_layers(layers(model))
        assert torch.equal(together, steps(model, headwise.Cache(model), ids, [1, 2]))


def test_a_forward_that_is_put_around_a_layer_sees_what_it_gives() -> None:
    model, ids = build("qwen3"), tokens(60)
    headwise.fast(model)
    seen: list[Tensor] = []
    layer = model.model.layers[1]
    own = layer.forward

    def around(*given: object, **how: object) -> Tensor:
        out = own(*given, **how)
        seen.append(out.clone())
        return out * 1.5

    layer.forward = around
    found = steps(model, headwise.Cache(model), ids, [1, 2])
    assert len(seen) == 3 and not any(bool(one.isnan().any()) for one in seen)
    unlink_layers(layers(model))
    assert torch.equal(found, steps(model, headwise.Cache(model), ids, [1, 2]))


def test_a_layer_in_the_place_of_another_sees_what_comes_before_it() -> None:
    model, ids = build("qwen3"), tokens(60)
    headwise.fast(model)
    norms: list[float] = []

    class Looking(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.inside = layer

        def forward(self, hidden: Tensor, *given: object, **how: object) -> Tensor:
            norms.append(float(hidden.norm()))
            return self.inside(hidden, *given, **how)

    own = model.model.layers[2]
    looking = Looking(own)
    looking.attention_type = getattr(own, "attention_type", None)
    model.model.layers[2] = looking
    steps(model, headwise.Cache(model), ids, [1, 2])
    assert len(norms) == 3 and all(norm == norm for norm in norms)


@pytest.mark.parametrize("change", ["bias", "scaling", "eps"])
def test_what_a_layer_computes_by_may_change(change: str) -> None:
    model, ids = build("qwen3"), tokens(60)
    headwise.fast(model)
    cache = headwise.Cache(model)
    steps(model, cache, ids, [1])
    fork = cache.fork()
    attention = model.model.layers[1].self_attn
    if change == "bias":
        attention.q_proj.bias = nn.Parameter(torch.randn(attention.q_proj.out_features) * 3)
    elif change == "scaling":
        attention.scaling *= 3
    else:
        attention.q_norm.variance_epsilon = 5.0
    with torch.no_grad():
        found = forward(model, cache, ids[:, :1]).logits
        headwise.detach(model)
        headwise.attach(model)
        expected = forward(model, fork, ids[:, :1]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_usual_type_of_numbers_may_be_another() -> None:
    model, ids = build("qwen3"), tokens(60)
    headwise.fast(model)
    expected = steps(model, headwise.Cache(model, "balanced"), ids, [1] * 5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = steps(model, headwise.Cache(model, "balanced"), ids, [1] * 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
