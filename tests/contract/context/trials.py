"""The trials of reading and finding documents at a size that takes seconds, and a wrong implementation of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headwise.context.trials import biases_alone, focus_llm, image_factors, layer_pooling, refrag

SMALL = {
    "biases_alone": "host_steps=10, steps=4, texts=32",
    "focus_llm": "host_steps=20, steps=4, prompts=32",
    "image_factors": "host_steps=20, steps=4, prompts=32",
    "layer_pooling": "host_steps=8, steps=6",
    "refrag": "steps=6, prompts=32",
}


def _alike(patch: pytest.MonkeyPatch) -> None:
    right = biases_alone.token_shares
    patch.setattr(biases_alone, "token_shares", lambda live, pool: right(live, "mean"))


def _in_a_row(patch: pytest.MonkeyPatch) -> None:
    right = focus_llm.candidates

    def wrong(model, chunks, local, last):  # type: ignore[no-untyped-def]
        """A chunk's candidate stands for those before it as well."""
        return [tuple(x.cumsum(2) for x in own) for own in right(model, chunks, local, last)]

    patch.setattr(focus_llm, "candidates", wrong)


def _text_too(patch: pytest.MonkeyPatch) -> None:
    right = image_factors.by_token
    patch.setattr(image_factors, "by_token", lambda own: None if own is None else 1.5 * right(own))  # type: ignore[operator]


def _vectors_too(patch: pytest.MonkeyPatch) -> None:
    right = refrag.Refrag.inputs

    def wrong(self: refrag.Refrag, texts: torch.Tensor, question: torch.Tensor, expanded: torch.Tensor) -> torch.Tensor:
        """An expanded chunk keeps its vector."""
        return torch.cat([self.vectors(texts)[:, :1], right(self, texts, question, expanded)], dim=1)

    patch.setattr(refrag.Refrag, "inputs", wrong)


def _last_alone(patch: pytest.MonkeyPatch) -> None:
    right = layer_pooling.LayerPooling.forward

    def wrong(self: layer_pooling.LayerPooling, vectors: torch.Tensor) -> torch.Tensor:
        """Every layer is told as the last one."""
        return right(self, vectors[:, -1:].expand_as(vectors))

    patch.setattr(layer_pooling.LayerPooling, "forward", wrong)


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "biases_alone": ("weighted", _alike),
    "focus_llm": ("order", _in_a_row),
    "image_factors": ("neutral", _text_too),
    "layer_pooling": ("gain", _last_alone),
    "refrag": ("plain", _vectors_too),
}
