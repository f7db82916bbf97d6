"""The trials of vision-language models at a size that takes seconds, and a wrong implementation of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from headwise.seams.transformers import slow
from headwise.vision.trials import mcout, mutual_mask

SMALL = {"mutual_mask": "steps=10", "slow_fast": "steps=5", "mcout": "steps=5"}


def _open(patch: pytest.MonkeyPatch) -> None:
    right = mutual_mask.mutual_mask
    patch.setattr(mutual_mask, "mutual_mask", lambda image, question: torch.zeros_like(right(image, question)))


def _ajar(patch: pytest.MonkeyPatch) -> None:
    right = slow.SlowReader.__init__

    def wrong(self: slow.SlowReader, attention: Any, width: int) -> None:
        right(self, attention, width)
        self.opened.data.fill_(0.01)

    patch.setattr(slow.SlowReader, "__init__", wrong)


def _always(patch: pytest.MonkeyPatch) -> None:
    right = mcout.Thinker.__init__
    patch.setattr(mcout.Thinker, "__init__", lambda self, seed, arm, thoughts: right(self, seed, arm, max(1, thoughts)))


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "mutual_mask": ("leak", _open),
    "slow_fast": ("start", _ajar),
    "mcout": ("zero", _always),
}
