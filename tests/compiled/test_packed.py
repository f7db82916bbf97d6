"""Models whose linear layers' weights are packed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import headwise
from headwise.assets import embedded_model
from headwise.compiled.packed import PackedLinear, pack_linears
from headwise.errors import HeadwiseError
from headwise.kernels.native.library import missing
from headwise.seams.transformers.load import load_model

built = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    return load_model(embedded_model(), "float32")


@built
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_all_layers_are_compiled_and_answer_as_the_weights_meant(whole: nn.Module, weights: str) -> None:
    """Greedy tokens, and logits of steps, are those of a plain model whose weights are what the codes stand for."""
    model, plain = copy.deepcopy(whole), copy.deepcopy(whole)
    done = headwise.fast(model, weights)
    assert done.compiled == done.layers and done.packed > 0 and not done.linears
    for name, one in plain.named_modules():
        if isinstance(one, nn.Linear):
            one.weight = nn.Parameter(model.get_submodule(name).weight.dense(), requires_grad=False)
    prompt = torch.randint(5, 400, (1, 40), generator=torch.Generator().manual_seed(0))
    found, expected = (
        headwise.generate(one, headwise.Cache(one, "snapkv(0.5)"), prompt, max_new_tokens=12) for one in (model, plain)
    )
    assert torch.equal(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(prompt).logits, plain(prompt).logits, atol=2e-3, rtol=1e-3)


@built
def test_more_bits_are_nearer(whole: nn.Module) -> None:
    ids = torch.randint(5, 400, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = whole(ids).logits
        away = []
        for weights in ("int8", "int4"):
            model = copy.deepcopy(whole)
            pack_linears(model, weights)
            away.append(float((model(ids).logits - own).norm() / own.norm()))
    assert 0 < away[0] < 0.02 < away[1] < 0.4


def test_shared_embeddings_stay_and_odd_layers_too() -> None:
    embedding, shared, odd = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False), nn.Linear(33, 8)
    shared.weight = embedding.weight
    model = nn.Sequential(embedding, shared, odd)
    before = embedding.weight.clone()
    assert pack_linears(model, "int8") == 1 and pack_linears(model, "int4") == 1  # what is packed stays as it is
    assert type(model[1]) is PackedLinear and type(model[2]) is nn.Linear and torch.equal(model[0].weight, before)


def test_what_a_packed_model_cannot_do_is_refused() -> None:
    model = nn.Sequential(nn.Linear(32, 4))
    pack_linears(model, "int8")
    with pytest.raises(HeadwiseError, match="save the model before"):
        model.state_dict()
    with pytest.raises(HeadwiseError, match="keep their type"):
        model.bfloat16()
    with pytest.raises(HeadwiseError, match="int3"):
        pack_linears(model, "int3")
    assert copy.deepcopy(model)(torch.ones(1, 32)).shape == (1, 4)
