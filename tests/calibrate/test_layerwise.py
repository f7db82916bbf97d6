"""Layers computed again give the gradients that layers remembered give, and are not remembered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from headwise.calibrate.layerwise import recomputed
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError
from headwise.methods.evict.duo.measure import duo_gates
from headwise.methods.evict.moa.losses import answer_loss, span_losses
from headwise.observe import LayerAttention, Recall, Subject
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval()


def gradients(model: PreTrainedModel, within: AbstractContextManager[None]) -> tuple[torch.Tensor, int]:
    """The gradient of an answer's loss by a factor of every layer's attention, and how many elements are remembered."""
    ids = torch.randint(2, 512, (1, 250), generator=torch.Generator().manual_seed(0))
    factors, remembered = torch.ones(3, requires_grad=True), 0

    def attention(one: LayerAttention) -> torch.Tensor:
        return factors[one.layer] * one.full()

    def noted(one: torch.Tensor) -> torch.Tensor:
        nonlocal remembered
        remembered += one.numel() if 250 in one.shape or 264 in one.shape else 0  # of the text, not weights
        return one

    recall = Recall(ids, ((ids[:, 10:14], ids[:, 14:17]), (ids[:, 100:104], ids[:, 104:107])))
    with within, torch.autograd.graph.saved_tensors_hooks(noted, lambda one: one):
        loss = answer_loss(ModelSubject(model), recall, attention)
        (found,) = torch.autograd.grad(loss, factors)
    return found, remembered


def test_gradients_are_the_same_and_activations_are_not_kept(model: PreTrainedModel) -> None:
    plain, whole = gradients(model, nullcontext())
    found, left = gradients(model, recomputed(model))
    assert float(plain.abs().min()) > 0
    torch.testing.assert_close(found, plain, atol=1e-7, rtol=1e-5)
    assert left * 5 < whole, "what is left is outside of layers"


def test_the_model_is_left_as_it_was(model: PreTrainedModel) -> None:
    before = [layer.forward for layer in model.model.layers]
    with pytest.raises(KeyboardInterrupt), recomputed(model):
        assert [layer.forward for layer in model.model.layers] != before
        raise KeyboardInterrupt
    assert [layer.forward for layer in model.model.layers] == before


@pytest.mark.parametrize("measure", [span_losses, lambda subject, recall: duo_gates(subject, [recall])])
def test_gradients_that_overflow_are_refused(
    tmp_path: Path, measure: Callable[[Subject, Recall], torch.Tensor]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path), rms_norm_eps=1e-30).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = 0.0  # as of a padding token; each norm multiplies its gradient
    ids = torch.randint(8, 512, (1, 600), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 7
    with pytest.raises(HeadwiseError, match=r"not finite.*embedding of zeros.*--only"):
        measure(ModelSubject(model), Recall(ids, ((ids[:, 10:14], ids[:, 14:17]),)))
