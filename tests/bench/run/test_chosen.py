"""The arms of one prompt: controls of equal bytes, each once."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

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


def test_controls_take_the_codec_where_windows_in_full_are_too_large() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=1024, layer_types=kinds, use_sliding_window=True,
        sliding_window=512,
    )  # fmt: skip
    frame = Frame(attach(Qwen3ForCausalLM(config).eval()), 600, torch.bfloat16)
    arms = compared(frame, [recipe_arm(frame, "int8", None)], baselines=True)
    held = {arm.label: frame.bytes_of(arm.plan(frame)) for arm in arms}
    assert [name for name in held if "|" in name] == ["random(600) | int8", "streaming(600) | int8"]
    assert held["random(600) | int8"] == held["int8"] < held["dense"]
