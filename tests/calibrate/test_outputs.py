"""Output projections are found by what they are fed, and weigh CriticalKV's votes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import headwise
from headwise.calibrate.measures.keys import calibrated
from headwise.calibrate.measures.outputs import output_projections
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError
from headwise.methods.evict.critical_kv import CriticalKV
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import prefill
from tests import tiny
from tests.methods.views import changed, make_view


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval()


def test_projections_are_the_model_s_own(model: PreTrainedModel) -> None:
    found = output_projections(ModelSubject(model))
    for layer, own in enumerate(model.model.layers):
        weight = own.self_attn.o_proj.weight  # [hidden, heads * e]
        expected = weight.T.view(2, 2, -1, weight.shape[0])
        torch.testing.assert_close(found[layer], expected, atol=1e-6, rtol=1e-5)
    some = output_projections(ModelSubject(model), most=8)
    width = found.shape[-1]
    assert torch.equal(some, found[..., torch.arange(8) * width // 8])


def test_attention_that_is_changed_before_anything_linear_sees_it_is_refused(model: PreTrainedModel) -> None:
    own = model.model.layers[1].self_attn
    own.o_proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2,), prepend=True)
    try:
        with pytest.raises(HeadwiseError, match=r"layers \[1\]: no module is fed"):
            output_projections(ModelSubject(model))
    finally:
        own.o_proj._forward_pre_hooks.clear()


def test_of_equal_votes_those_stay_that_move_the_output() -> None:
    view = changed(make_view(60, 2, 8), calibration={"output": torch.zeros(2, 2, 12, 5)})
    view.calibration["output"][:, :, 3] = 1.0  # only channel 3 reaches the output
    view.granted["keys"][:] = view.keys[:, :1]  # all are attended to alike
    view.granted["values"][:, :, 3] = 0.01
    view.granted["values"][:, 20:30, 3] = 5.0
    method = CriticalKV(20, sinks=0, recent=0, window=4, kernel=1, sure=0.0)
    for row in method.score(view):
        best = set(row.argsort(descending=True)[4:14].tolist())
        assert best == set(range(20, 30)), "after the voters' own four tokens"


def test_measured_on_a_model_it_keeps_other_tokens_than_the_votes(model: PreTrainedModel) -> None:
    ids = torch.randint(2, 512, (1, 200), generator=torch.Generator().manual_seed(0))
    tensors = {"critical_kv.output": output_projections(ModelSubject(model))}
    kept = []
    for recipe in ("snapkv(60)", "critical_kv(60, sure=1.0)", "critical_kv(60, sure=0.1)"):
        plan = Plan.uniform(attach(model).geometry, recipe)
        cache = headwise.Cache(model, calibrated(plan, tensors))
        prefill(model, cache, ids, None)
        kept.append([cache.session.positions(layer, 0, head).tolist() for layer in range(3) for head in range(2)])
    assert kept[0] == kept[1] != kept[2]
