"""The trials of vision-language models at a size that takes seconds, and a wrong implementation of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headwise.vision.trials import mutual_mask

SMALL = {"mutual_mask": "steps=10"}


def _open(patch: pytest.MonkeyPatch) -> None:
    right = mutual_mask.mutual_mask
    patch.setattr(mutual_mask, "mutual_mask", lambda image, question: torch.zeros_like(right(image, question)))


MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {"mutual_mask": ("leak", _open)}
