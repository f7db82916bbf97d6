"""Explanations of a prompt are those of Captum, where it is installed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headwise.calibrate.subject import ModelSubject
from headwise.explanations import EXPLANATIONS
from headwise.lens import Text
from headwise.lens.prompt import Prompt

captum = pytest.importorskip("captum.attr", reason="captum is not installed")

TARGET, BLANK = 5, 1


@pytest.fixture
def prompt(subject: ModelSubject, text: Text) -> Prompt:
    return Prompt(subject, text.ids[:, :17], target=TARGET, blank=BLANK)


def of_embeddings(prompt: Prompt) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """The prompt's embeddings [1, n, width], and what Captum asks of them: the log-probability [rows]."""

    def likelihood(embedded: torch.Tensor) -> torch.Tensor:
        return prompt.model(inputs_embeds=embedded, use_cache=False).logits[:, -1].log_softmax(-1)[:, TARGET]

    return prompt.model.get_input_embeddings()(prompt.ids).detach(), likelihood


def test_integrated_gradients(prompt: Prompt) -> None:
    embedded, likelihood = of_embeddings(prompt)
    told = captum.IntegratedGradients(likelihood).attribute(embedded, n_steps=16, method="riemann_middle")
    torch.testing.assert_close(EXPLANATIONS.get("integrated").of(prompt), told[0].sum(-1).float(), atol=1e-4, rtol=1e-3)


def test_gradient_times_input(prompt: Prompt) -> None:
    embedded, likelihood = of_embeddings(prompt)
    told = captum.InputXGradient(likelihood).attribute(embedded.requires_grad_())
    torch.testing.assert_close(EXPLANATIONS.get("gradient").of(prompt), told[0].sum(-1).float(), atol=1e-4, rtol=1e-3)


def test_leaving_tokens_out(prompt: Prompt) -> None:
    told = captum.FeatureAblation(prompt.likelihood).attribute(prompt.ids, baselines=BLANK)
    torch.testing.assert_close(EXPLANATIONS.get("leave_out").of(prompt), told[0].float(), atol=1e-4, rtol=1e-3)


def test_lime_and_shapley_values_rank_alike(prompt: Prompt) -> None:
    """Sampled both, so not the same: but ranks agree far beyond chance."""
    from headwise.lens.explained import spearman

    torch.manual_seed(0)
    told = captum.KernelShap(prompt.likelihood).attribute(prompt.ids, baselines=BLANK, n_samples=400)
    assert spearman(EXPLANATIONS.get("lime").of(prompt), told[0].float()) > 0.6
