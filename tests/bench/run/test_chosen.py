"""The arms of one prompt: controls of equal bytes, each once."""

from __future__ import annotations

from typing import Any

import torch

from headwise.bench.frame import Frame
from headwise.bench.run.chosen import compared, recipe_arm
from headwise.seams.transformers.cache import attach

Loaded = tuple[Any, Any]


def test_arms_of_equal_bytes_share_their_baselines(loaded: Loaded) -> None:
    frame = Frame(attach(loaded[0]), 1500, torch.float32)
    asked = [recipe_arm(frame, sentence, None) for sentence in ("keydiff(304)", "l2norm(304, skip_layers=0)")]
    names = [arm.label for arm in compared(frame, asked, baselines=True)]
    assert names[3:] == ["random(304)", "streaming(304)", "streaming(1.0)"]
    more = [recipe_arm(frame, sentence, None) for sentence in ("keydiff(304)", "keydiff(600)", "quest(64)")]
    assert len(compared(frame, more, baselines=True)) == 1 + 3 + 4 + 1
    assert [arm.role for arm in compared(frame, more, baselines=False)] == ["dense", "plan", "plan", "plan"]
