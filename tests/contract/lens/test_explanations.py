"""The laws of every explanation: a figure for each token, the same again; signs as the card says; the model is as it
was. A wrong one of each law is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError
from headwise.explanations import EXPLANATIONS
from headwise.lens.prompt import Prompt
from tests import tiny

Of = Callable[[Prompt], torch.Tensor]
NAMES = list(EXPLANATIONS.all())
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    folder: Path = tiny.build(tmp_path_factory.mktemp("explanations"))
    subject = ModelSubject(AutoModelForCausalLM.from_pretrained(folder).eval())
    ids = torch.randint(2, 512, (1, 17), generator=torch.Generator().manual_seed(0))
    return Prompt(subject, ids, target=7, blank=1)


def law_figures(of: Of, prompt: Prompt) -> None:
    found = of(prompt)
    assert found.shape == (prompt.tokens,) and found.dtype == torch.float32 and bool(found.isfinite().all())
    assert torch.equal(of(prompt), found), "a prompt is explained the same again"


def law_signs(of: Of, prompt: Prompt, signed: bool) -> None:
    assert signed == bool((of(prompt) < 0).any())


def hooks_of(prompt: Prompt) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in prompt.model.modules())


def law_untouched(of: Of, prompt: Prompt) -> None:
    before, hooks = prompt.logits(prompt.ids), hooks_of(prompt)
    of(prompt)
    assert torch.equal(prompt.logits(prompt.ids), before)
    assert hooks_of(prompt) == hooks
    assert all(one.grad is None for one in prompt.model.parameters())


@every
def test_a_figure_for_each_token_the_same_again(name: str, prompt: Prompt) -> None:
    law_figures(EXPLANATIONS.get(name).of, prompt)


@every
def test_figures_below_zero_are_as_the_card_says(name: str, prompt: Prompt) -> None:
    one = EXPLANATIONS.get(name)
    law_signs(one.of, prompt, one.card.signed)


@every
def test_the_model_is_what_it_was(name: str, prompt: Prompt) -> None:
    law_untouched(EXPLANATIONS.get(name).of, prompt)


@every
def test_a_card_says_what_readers_need(name: str) -> None:
    card = EXPLANATIONS.get(name).card
    assert all((card.title, card.tells, card.takes, card.deviations)) and "arXiv" in card.paper


def test_wrong_ones_are_caught(prompt: Prompt) -> None:
    def touching(one: Prompt) -> torch.Tensor:
        one.model.get_output_embeddings().weight.data.add_(0.5)
        return torch.ones(one.tokens)

    weight = prompt.model.get_output_embeddings().weight
    kept = weight.detach().clone()
    with pytest.raises(AssertionError):
        law_untouched(touching, prompt)
    weight.data.copy_(kept)
    with pytest.raises(AssertionError):
        law_figures(lambda one: torch.rand(one.tokens), prompt)
    with pytest.raises(AssertionError):
        law_signs(lambda one: torch.ones(one.tokens), prompt, True)


@pytest.mark.parametrize("wrong", [{"target": 512}, {"blank": -1}])
def test_tokens_that_are_none_are_refused(prompt: Prompt, wrong: dict[str, int]) -> None:
    with pytest.raises(HeadwiseError, match="is no token; there are 0 to 511"):
        Prompt(**{"subject": prompt.subject, "ids": prompt.ids, "target": 7, "blank": 1, **wrong})
