"""Vectors of texts: what tokens count, whoever stands beside them, and pooling of layers as its plainest form."""

from __future__ import annotations

import pytest
import torch

from headwise.context.layer_pooling import LayerPooling, plain
from headwise.context.states import layer_vectors, token_shares
from headwise.errors import ContextError, HeadwiseError
from tests.contract.context.cases import pair

TEXTS = ("The Martians came in June.", "Nobody saw the heath again, and nobody asked.")


def test_the_ith_of_n_tokens_counts_i() -> None:
    live = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert token_shares(live, "weighted_mean")[0].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 0])
    assert token_shares(live, "mean")[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert token_shares(live, "last").tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("pool", ["weighted_mean", "mean", "last"])
def test_a_text_has_its_vectors_whoever_is_read_beside_it(pool: str) -> None:
    both = layer_vectors(*pair(), TEXTS, [pool])  # type: ignore[list-item]
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(layer_vectors(*pair(), [text], [pool])[0, 0], both[0, i], atol=1e-5, rtol=1e-4)  # type: ignore[list-item]


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ContextError, match="tokens, the model was trained on"):
        layer_vectors(*pair(), ["word " * 20_000], ["mean"])


def test_pooling_of_layers_is_its_plainest_form() -> None:
    torch.manual_seed(0)
    pool, vectors = LayerPooling(3, 16, latents=5, heads=4), torch.randn(2, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(pool(vectors), torch.stack([plain(pool, one) for one in vectors]))
        torch.testing.assert_close(pool(vectors).norm(dim=1), torch.ones(2))
        assert not torch.allclose(pool(vectors), pool(vectors.flip(1)))  # which layer it is counts


def test_pooling_refuses_what_it_was_not_made_for() -> None:
    with pytest.raises(HeadwiseError, match="heads that divide the width"):
        LayerPooling(3, 16, heads=5)
    with pytest.raises(HeadwiseError, match=r"this pooling reads \[texts, 3, 16\]"):
        LayerPooling(3, 16)(torch.zeros(2, 4, 16))
