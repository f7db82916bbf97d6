"""Figures of heads are those of TransformerLens, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.calibrate.subject import ModelSubject
from headwise.lens import Scene, Text, measured, patched, recorded
from headwise.lens.stream import directions, stream

bridges = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")


@pytest.fixture(scope="module")
def bridge(folder: Path) -> Any:
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return bridges.TransformerBridge.boot_transformers(str(folder), hf_model=own, device="cpu")


@torch.no_grad()
def test_where_heads_look(bridge: Any, subject: ModelSubject, text: Text) -> None:
    _, cache = bridge.run_with_cache(text.ids)
    maps = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0] for layer in range(3)])
    found = measured(Scene(subject, text), ["previous", "first", "itself"]).figures
    torch.testing.assert_close(found["previous"], maps.diagonal(-1, 2, 3).mean(-1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["first"], maps[:, :, 1:, 0].mean(-1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["itself"], maps[:, :, 1:].diagonal(1, 2, 3).mean(-1), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_what_heads_add_to_the_logit_of_the_token_that_follows(bridge: Any, subject: ModelSubject, text: Text) -> None:
    """Direct logit attribution, through the scale of the last norm."""
    _, cache = bridge.run_with_cache(text.ids)
    added = cache.stack_head_results()[:, 0, :-1]  # [layers * heads, n - 1, width]
    norm, unembed = subject.model.model.norm.weight, subject.model.lm_head.weight
    unembed = unembed - unembed.mean(0)  # above the mean logit
    toward = unembed[text.ids[0, 1:]] * norm / cache["ln_final.hook_scale"][0, :-1]
    truth = torch.einsum("hpw,pw->h", added, toward).view(3, 4) / (text.tokens - 1)
    found = measured(Scene(subject, text), ["answers"]).figures["answers"]
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_logit_lens(bridge: Any, subject: ModelSubject, text: Text) -> None:
    """The last layer's states, read as logits of single tokens above the mean."""
    logits, _ = bridge.run_with_cache(text.ids)
    places, tokens = torch.tensor([3, 50, 99]), torch.tensor([7, 9, 11])
    found = stream(subject, text.ids, places)
    own = (found.final * directions(subject, found, tokens)).sum(-1)
    torch.testing.assert_close(own, logits[0, places, tokens] - logits[0, places].mean(-1), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_patched_head(bridge: Any, subject: ModelSubject, text: Text) -> None:
    other = text.ids.flip(1)
    with recorded(subject.model, [(1, 2)]) as said:
        subject.model(other)
    with patched(subject.model, said):
        found = subject.model(text.ids).logits

    def put(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, :, 2] = said[1, 2]
        return z

    truth = bridge.run_with_hooks(text.ids, fwd_hooks=[("blocks.1.attn.hook_z", put)])
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-3)
