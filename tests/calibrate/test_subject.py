"""A model as a subject of measures: what runs through it is the model's own forward."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.attention.view import View
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError
from headwise.observe import LayerAttention, Observer, Recall
from tests import tiny


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> ModelSubject:
    return ModelSubject(AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval())


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(2, 512, (1, 250), generator=torch.Generator().manual_seed(0))


def test_a_subject_tells_what_its_model_is(subject: ModelSubject) -> None:
    assert subject.vocabulary == 512 and subject.geometry.kv_heads == (2, 2, 2)
    assert subject.ropes is not None and len(subject.ropes) == 3
    assert len(subject.fingerprint) == 16


def test_logits_and_hidden_states_are_the_models_own(subject: ModelSubject, ids: torch.Tensor) -> None:
    places = torch.tensor([10, 100, 249])
    own = subject.model(ids, output_hidden_states=True)
    for found, truth in (
        (subject.logits(ids, places, LayerAttention.full), own.logits),
        (subject.hidden(ids, places, LayerAttention.full), own.hidden_states[-1]),
    ):
        torch.testing.assert_close(found, truth[0, places], atol=1e-4, rtol=1e-4)
        assert found.requires_grad


def test_own_answers_are_what_the_model_generates(subject: ModelSubject, ids: torch.Tensor) -> None:
    recall = subject.own_answers(Recall(ids, ((ids[:, 10:14], ids[:, 14:17]),)))
    ((question, answer),) = recall.asked
    logits = subject.model(torch.cat((ids, question, answer), dim=1)).logits[0]
    assert torch.equal(logits[-1 - answer.shape[1] : -1].argmax(-1), answer[0])


def test_observers_see_every_layer_of_every_document(subject: ModelSubject, ids: torch.Tensor) -> None:
    seen: list[tuple[int, int, bool]] = []

    class Lengths(Observer):
        def look(self, view: View) -> None:
            seen.append((view.layer, view.count, self.ends(view)))

    subject.observe(Lengths(), [ids, ids[:, :100]])
    assert seen == [(layer, count, True) for count in (250, 100) for layer in range(3)]
    with pytest.raises(HeadwiseError, match="at least one document"):
        subject.observe(Lengths(), [])
