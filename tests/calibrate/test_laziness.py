"""Which layers SimLayerKV finds lazy, and what it keeps of them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import headwise
from headwise.calibrate.measures.keys import calibrated
from headwise.calibrate.subject import ModelSubject
from headwise.methods.evict.sim_layer import laziness
from headwise.observe import LayerAttention
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import prefill
from tests import tiny

TOKENS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(2, 512, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def test_laziness_is_the_attention_to_first_and_near_tokens_written_out(
    model: PreTrainedModel, ids: torch.Tensor
) -> None:
    subject, matrices = ModelSubject(model), {}

    def attention(one: LayerAttention) -> torch.Tensor:
        keys, values = (x[0].repeat_interleave(2, 0) for x in (one.k, one.v))
        scores = one.q[0] @ keys.mT * one.scoring.scale
        matrices[one.layer] = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf).softmax(-1)
        return (matrices[one.layer] @ values)[None]

    subject.hidden(ids, torch.tensor([TOKENS - 1]), attention)
    for last in (1, 32):
        found = laziness(subject, [ids], last)
        assert found.shape == (3, 2, 14)
        for layer, near in ((0, 16), (1, 64), (2, 256), (2, 2**17)):
            given = []
            for query in range(TOKENS - last, TOKENS):
                row = matrices[layer][:, query].detach().mean(0)
                given.append(float(row[:4].sum() + row[max(4, query - near) : query].sum()))
            expected = sum(given) / last
            assert found[layer, :, near.bit_length() - 5].tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_lazy_layers_keep_first_and_latest_tokens_and_the_others_everything(
    model: PreTrainedModel, ids: torch.Tensor
) -> None:
    near = laziness(ModelSubject(model), [ids])
    values = near[:, 0, 2].sort().values
    threshold = float(values[:2].mean())  # between the busiest layer and the others
    plan = Plan.uniform(
        attach(model).geometry, f"sim_layer(70, near=100, threshold={threshold:.6f}, sinks=4, recent=32)"
    )
    cache = headwise.Cache(model, calibrated(plan, {"sim_layer.near": near}))
    prefill(model, cache, ids, None)
    for layer in range(3):
        lazy = float(near[layer, 0, 2]) > threshold
        expected = [*range(4), *range(TOKENS - 66, TOKENS)] if lazy else [*range(TOKENS)]
        assert [cache.session.positions(layer, 0, head).tolist() for head in range(2)] == [expected] * 2
    assert sum(near[:, 0, 2] > threshold) == 2
