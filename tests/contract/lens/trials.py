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
    choices,
    codes,
    crossing,
    deceptive,
    dependencies,
    image_heads,
    navigation,
    pursuit,
    reagent,
    recall,
    refusal,
    rollout,
    vocabulary_maps,
)

SMALL = {
    "agreement": "prompts=2, steps=100",
    "attention_lens": "steps=100, lens_steps=20, texts=8",
    "channels": "steps=100, texts=8",
    "choices": "steps=40, prompts=16",
    "codes": "prompts=2, steps=10",
    "crossing": "steps=10, texts=2, masks=32",
    "deceptive": "steps=40",
    "dependencies": "steps=10, texts=20",
    "image_heads": "steps=10",
    "navigation": 'model="embedded", prompts=2',
    "pursuit": 'model="embedded", prompts=2',
    "reagent": "prompts=2, steps=100",
    "recall": "steps=60, prompts=8",
    "refusal": "steps=10, prompts=4",
    "rollout": "prompts=4, steps=100",
    "vocabulary_maps": "texts=8",
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


def _weakest_directions(patch: pytest.MonkeyPatch) -> None:
    def wrong(vectors: Any) -> torch.Tensor:
        return torch.linalg.svd(torch.cat(tuple(vectors)), full_matrices=False).Vh[-choices.RANK :].T

    patch.setattr(choices, "leading", wrong)


def _all_codes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codes, "only_in", lambda positive, negative: torch.zeros(positive.shape[1]))


def _any_keys(patch: pytest.MonkeyPatch) -> None:
    right = navigation.Navigation.products
    chance = torch.Generator().manual_seed(0)
    patch.setattr(
        navigation.Navigation, "products", lambda self, ids: torch.randn(right(self, ids).shape, generator=chance)
    )


def _attention_itself(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, model: Any, shown: torch.Tensor, tones: torch.Tensor, *_: Any, inside: bool) -> torch.Tensor:
        maps: torch.Tensor = model(shown if inside else model.heard(shown), tones)[1]
        return maps.mean(1)

    patch.setattr(crossing.Crossing, "saliency", wrong)


def _against_the_probe(patch: pytest.MonkeyPatch) -> None:
    right = dependencies.probed
    patch.setattr(dependencies, "probed", lambda known, where, held: -right(known, where, held))


def _untrained_coder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(image_heads, "adam", lambda parameters, loss, steps, rate: None)


def _least_divergence(patch: pytest.MonkeyPatch) -> None:
    right = refusal.ships
    patch.setattr(refusal, "ships", lambda whole, without: -right(whole, without))


def _unwritten(patch: pytest.MonkeyPatch) -> None:
    right = vocabulary_maps.Vocabulary.written
    patch.setattr(vocabulary_maps.Vocabulary, "written", lambda self, head: -right(self, head))


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "agreement": ("falls attention", _noise(agreement, "attention")),
    "attention_lens": ("nearer", _untrained_lens),
    "channels": ("top", _weakest),
    "choices": ("costs", _weakest_directions),
    "codes": ("area", _all_codes),
    "crossing": ("output", _attention_itself),
    "deceptive": ("mass", _nothing_hidden),
    "dependencies": ("probe", _against_the_probe),
    "image_heads": ("purity", _untrained_coder),
    "navigation": ("near", _any_keys),
    "pursuit": ("falls", _first_tokens),
    "reagent": ("nearest", _noise(reagent, "reagent")),
    "recall": ("flips", _own_words),
    "refusal": ("ratio", _least_divergence),
    "rollout": ("rollout", _noise(rollout, "rollout")),
    "vocabulary_maps": ("planted", _unwritten),
}
