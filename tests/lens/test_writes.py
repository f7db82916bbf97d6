"""What heads write by their weights."""

from __future__ import annotations

import pytest
import torch

from headwise.calibrate.subject import ModelSubject
from headwise.lens import Scene, Text, measured
from headwise.lens.writes import Vocabulary


@torch.no_grad()
def test_a_map_is_the_product_of_the_heads_weights(subject: ModelSubject) -> None:
    ids, model = torch.tensor([5, 99, 300]), subject.model
    vocabulary = Vocabulary(subject, ids)
    for layer, head in ((0, 0), (2, 3)):
        attention = model.model.layers[layer].self_attn
        inner = model.model.layers[layer].input_layernorm(model.model.embed_tokens(ids))
        kv = head // 2
        value = inner @ attention.v_proj.weight[16 * kv : 16 * (kv + 1)].T
        state = value @ attention.o_proj.weight[:, 16 * head : 16 * (head + 1)].T
        truth = model.lm_head(model.model.norm(state))
        torch.testing.assert_close(vocabulary.written((layer, head)), truth, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("planted", [(0, 2), (2, 1)])
def test_a_planted_copying_head_is_found(subject: ModelSubject, text: Text, planted: tuple[int, int]) -> None:
    """A head whose value and output projections lead from an embedding back to its own token."""
    layer, head = planted
    model, kv = subject.model, head // 2
    attention = model.model.layers[layer].self_attn
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).Q
        model.model.embed_tokens.weight.copy_(
            torch.randn(512, 16, generator=torch.Generator().manual_seed(1)) @ basis.T
        )
        model.lm_head.weight.copy_(torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=1))
        model.model.layers[layer].input_layernorm.weight.fill_(1.0)
        attention.v_proj.weight[16 * kv : 16 * (kv + 1)] = basis.T
        attention.o_proj.weight[:, 16 * head : 16 * (head + 1)] = basis
    found = measured(Scene(subject, text), ["copying"]).figures["copying"]
    assert float(found[planted]) > 0.9
    found[planted] = 0.0
    assert float(found.max()) < 0.5
