"""Trials of layers and recipes that are trained, at a size that takes seconds, and a wrong implementation of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headwise.theory import recurrent_memory, reweaving, set_transformer, transnormer, trees

SMALL = {
    "set_transformer": "steps=10",
    "recurrent_memory": "steps=5, questions=64",
    "reweaving": "steps=5, questions=64",
    "transnormer": "tokens=12, steps=9000",
    "linearised": "steps=4, more=2, batch=2, texts=2",
}


def _placed(patch: pytest.MonkeyPatch) -> None:
    right = set_transformer.Isab.forward
    patch.setattr(set_transformer.Isab, "forward", lambda self, x: right(self, x + torch.arange(x.shape[1])[:, None]))


def _never_empty(patch: pytest.MonkeyPatch) -> None:
    right = recurrent_memory.Recurrent.forward

    def wrong(self: recurrent_memory.Recurrent, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        return right(self, x, torch.zeros_like(x[:, :1]) if memory is None else memory)

    patch.setattr(recurrent_memory.Recurrent, "forward", wrong)


def _whole_past(patch: pytest.MonkeyPatch) -> None:
    right = reweaving.Woven.weave

    def wrong(self: reweaving.Woven, x: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        patch.setattr(self, "window", 1)  # tokens in the window are woven, too
        return right(self, x, kept)

    patch.setattr(reweaving.Woven, "weave", wrong)


def _unrelated(patch: pytest.MonkeyPatch) -> None:
    right = trees.Tree.above
    patch.setattr(trees.Tree, "above", lambda self, back: right(self, max(0, back - 1)))  # a parent counts twice


def _faded(patch: pytest.MonkeyPatch) -> None:
    def wrong(q: torch.Tensor, written: torch.Tensor, memory: torch.Tensor, decay: torch.Tensor, place: int) -> object:
        memory = decay * (memory + written)  # what a token writes fades before it is read
        return q @ memory, memory

    patch.setattr(transnormer, "robust", wrong)


# By experiment: the measure that is wrong then, and how it is planted.
MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "set_transformer": ("moved", _placed),
    "recurrent_memory": ("empty", _never_empty),
    "reweaving": ("off", _whole_past),
    "transnormer": ("late", _faded),
    "linearised": ("tree", _unrelated),
}
