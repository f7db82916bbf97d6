"""Small networks are trained on what is shown, each layer on its own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from headwise.errors import HeadwiseError
from headwise.observe import finite, trained, trained_layers


def loss(lesson: float, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return (weights["one"] - lesson).square().sum()


def test_every_layer_learns_from_its_own_lessons() -> None:
    start = {"one": torch.zeros(2)}
    found = trained_layers(start, (2, 2, 2), {0: [1.0], 2: [-1.0]}, loss, steps=300, rate=0.1)["one"]
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, 2), atol=1e-3, rtol=0)
    assert torch.equal(found[2], trained(start, [-1.0], loss, steps=300, rate=0.1)["one"])
    assert not start["one"].any(), "where training starts is left as it was"


def test_a_layer_of_fewer_heads_learns_for_those_it_has() -> None:
    found = trained_layers({"one": torch.zeros(2)}, (2, 1), {0: [1.0], 1: [1.0]}, loss, steps=300, rate=0.1)["one"]
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [1.0, 0.0]]), atol=1e-3, rtol=0)


def test_gradients_that_are_not_finite_are_refused() -> None:
    assert finite(torch.ones(2), "this").sum() == 2
    with pytest.raises(HeadwiseError, match=r"gradient of this is not finite.*--only"):
        finite(torch.tensor([1.0, torch.inf]), "this")
