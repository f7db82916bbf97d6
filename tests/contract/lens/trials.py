"""The trials of the lens at a size that takes seconds, and a wrong implementation of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from headwise.lens.trials import (
    agreement,
    attention_lens,
    channels,
    deceptive,
    pursuit,
    reagent,
    recall,
    rollout,
)

SMALL = {
    "agreement": "prompts=2, steps=100",
    "attention_lens": "steps=100, lens_steps=20, texts=8",
    "channels": "steps=100, texts=8",
    "deceptive": "steps=40",
    "pursuit": 'model="embedded", prompts=2',
    "reagent": "prompts=2, steps=100",
    "recall": "steps=60, prompts=8",
    "rollout": "prompts=4, steps=100",
}


def _noise(module: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Plants figures by chance in the place of an explanation's."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = module.EXPLANATIONS.get(name)
        chance = torch.Generator().manual_seed(0)
        wrong = replace(right, of=lambda prompt: torch.rand(prompt.tokens, generator=chance))
        patch.setitem(module.EXPLANATIONS._things, name, wrong)

    return plant


def _untrained_lens(patch: pytest.MonkeyPatch) -> None:
    def wrong(outputs: torch.Tensor, logits: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
        return 100 * torch.randn(outputs.shape[1], logits.shape[1], generator=torch.Generator().manual_seed(seed))

    patch.setattr(attention_lens, "trained_lens", wrong)


def _weakest(patch: pytest.MonkeyPatch) -> None:
    right = channels.strongest
    patch.setattr(channels, "strongest", lambda one: {x: (1 - score, at) for x, (score, at) in right(one).items()})


def _nothing_hidden(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deceptive, "LEAST", 1.0)


def _first_tokens(patch: pytest.MonkeyPatch) -> None:
    right = pursuit.scaled
    patch.setattr(pursuit, "scaled", lambda model, factors: right(model, dict.fromkeys(factors, 1.0)))


def _own_words(patch: pytest.MonkeyPatch) -> None:
    right = recall.recorded
    patch.setattr(recall, "recorded", lambda model, heads: right(model, heads[:0]))


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "agreement": ("falls attention", _noise(agreement, "attention")),
    "attention_lens": ("nearer", _untrained_lens),
    "channels": ("top", _weakest),
    "deceptive": ("mass", _nothing_hidden),
    "pursuit": ("falls", _first_tokens),
    "reagent": ("nearest", _noise(reagent, "reagent")),
    "recall": ("flips", _own_words),
    "rollout": ("rollout", _noise(rollout, "rollout")),
}
